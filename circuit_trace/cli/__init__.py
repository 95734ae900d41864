"""The command line: `circuit-trace demo | score | circuit | …`, one file each."""

from circuit_trace.cli.main import main as main
