"""`circuit-trace`: read the arguments, run one command, and say in one line what does not fit."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from circuit_trace.cli import (
    circuit,
    convert,
    demo,
    diff,
    draw,
    explore,
    faithfulness,
    score,
    show,
    trace,
)
from circuit_trace.cli.options import COMMAND
from circuit_trace.cli.words import in_shell_words
from circuit_trace.errors import CircuitTraceError

IN_ORDER_OF_USE = (demo, score, circuit, faithfulness, trace, show, draw, explore, diff, convert)

EPILOG = """\
examples:
  circuit-trace demo                                   the main job on the bundled model, offline
  circuit-trace score --clean "…" --corrupt "…" --answers " Mary" " John" -o scores.pkl
  circuit-trace circuit scores.pkl --n-edges 20 --method greedy -o circuit.pkl
  circuit-trace faithfulness --scores scores.pkl --clean "…" --corrupt "…" --answers " Mary" " John"
  circuit-trace trace --clean "…" --corrupt "…" --edges "A0.*->A1.0.Q" -o pass.trace pass.html
  circuit-trace show pass.trace --edges "*->Resid End" ask the record again
  circuit-trace draw scores.json -o circuit.html       anybody's scores as a picture
  circuit-trace explore pass.trace -o pass.html        a page to click through
  circuit-trace diff before.trace after.trace          what changed from one pass to another
  circuit-trace convert scores.pt scores.json          from one tool's format to another's

`circuit-trace COMMAND --help` tells what each takes.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, or 1 with a one-line message where something does not fit."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            code = options.run(options)
            sys.stdout.flush()
            return code
    except CircuitTraceError as error:
        _say(in_shell_words(str(error)))
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `circuit-trace show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say(text: str) -> None:
    print(f"circuit-trace: {text}", file=sys.stderr)


def _note(message: Warning | str, *_where: Any, **_more: Any) -> None:
    """A warning as one line, without the place in the code that a reader of it does not know."""
    if not isinstance(message, DeprecationWarning | FutureWarning):
        _say(f"note: {in_shell_words(str(message))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="circuit-trace",
        description="See what flows along the edges of a transformer while it runs patched.",
        epilog=EPILOG,
        **COMMAND,
    )
    parser.add_argument(
        "--version", action="version", version=f"circuit-trace {version('circuit-trace')}"
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in IN_ORDER_OF_USE:
        command.add_to(commands)
    return parser
