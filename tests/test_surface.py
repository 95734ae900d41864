"""What a user finds under `circuit_trace`: what is meant to be used, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import circuit_trace as ct


def test_completion_shows_what_is_meant_to_be_used() -> None:
    assert dir(ct) == sorted(ct.__all__)
    assert len(set(ct.__all__)) == len(ct.__all__)
    for name in ct.__all__:
        found = getattr(ct, name)
        assert not isinstance(found, ModuleType), name
        assert str(getattr(found, "__module__", "circuit_trace")).startswith(
            ("circuit_trace", "builtins")
        ), name


def test_what_a_user_is_given_can_be_named() -> None:
    """The types of what the public functions return are at hand for annotations."""
    from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT

    model = ct.wrap(ct.load_model("bundled"))
    trace = model.trace(
        CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End"], heads=["A1.0"], answers=ANSWERS
    )
    scores = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS))
    given = [
        (trace, ct.Trace),
        (trace.edge("A1.0->Resid End"), ct.EdgeFlow),
        (trace.dest("Resid End"), ct.DestFlow),
        (trace.head("A1.0"), ct.HeadRecord),
        (trace.outcome, ct.Outcome),
        (trace.masks, ct.EdgeScores),
        (trace.diff(trace), ct.TraceDiff),
        (scores, ct.EdgeScores),
        (scores.circuit(n_edges=24), ct.Circuit),
        (scores.circuit(n_edges=24), ct.EdgeScores),
        (scores.diff(scores), ct.ScoresDiff),
        (ct.from_networkx(ct.to_networkx(scores, model)), ct.EdgeScores),
        (trace.patched, ct.SourceOutputs),
    ]
    for one, kind in given:
        assert type(one) is kind or isinstance(one, kind), kind


def test_import_is_light() -> None:
    """Neither Plotly nor TransformerLens is imported before something needs it."""
    code = (
        "import sys, circuit_trace; "
        "print([m for m in ('plotly', 'transformer_lens', 'kaleido') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
