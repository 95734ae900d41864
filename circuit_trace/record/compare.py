"""Which two things that flowed along an edge a row, a label or a width compares."""

from __future__ import annotations

from typing import Any, Literal, get_args

from circuit_trace.errors import InputError
from circuit_trace.record.record import Record

Which = Literal["clean", "current", "patched", "received"]
"""What a source writes unpatched, what it wrote in the pass, what is patched in, what arrived."""

Pair = tuple[Which, Which]
"""What is compared, from the first to the second."""


def pair_of(trace: Record, compare: Any = None) -> Pair | None:
    """What is compared: what a user asks for, else what tells most of the pass.

    That is clean → received where edges were patched, and clean → patched, what patching would bring
    in, where none was. In a pass that does not know what its sources write unpatched, it is current →
    patched. None where there is but one thing, the current output.

    Raises:
        InputError: `compare` is no pair of these, or the pass does not know one of them.
    """
    known = _known(trace)
    if compare is None:
        if trace.patched is None:
            return None
        if trace.clean is None:
            return "current", "patched"
        return ("clean", "received") if trace.is_patched else ("clean", "patched")
    given = tuple(compare) if isinstance(compare, list | tuple) else ()
    if len(given) != 2 or given[0] == given[1] or not set(given) <= set(get_args(Which)):
        raise InputError(
            f"compare must be two of {', '.join(get_args(Which))}, such as ('clean', 'received'); got "
            f"{compare!r}."
        )
    missing = [one for one in given if one not in known]
    if missing:
        raise InputError(f"This pass does not know {missing[0]!r}: {_HOW[missing[0]]}.")
    return given


def arrow(pair: Pair | None) -> str:
    """The pair as it is written.

    >>> arrow(("clean", "received"))
    'clean→received'
    """
    return "current" if pair is None else "→".join(pair)


_HOW = {
    "clean": (
        "trace(...) records it unless clean=False, and inside `patch` it is given: "
        "model.patch(..., clean=model.source_outputs(tokens))"
    ),
    "patched": "nothing was patched in; trace it with corrupt= or patched=",
}


def _known(trace: Record) -> set[str]:
    known = {"current", "received"}
    known |= {"clean"} if trace.clean is not None else set()
    return known | ({"patched"} if trace.patched is not None else set())
