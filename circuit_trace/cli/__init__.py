"""The command line: `circuit-trace demo | trace | show | draw | convert`, one file each."""

from circuit_trace.cli.main import main as main
