"""The main job, end to end: which edges move the name, and what flowed along them?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from circuit_trace.demo.prompts import Prompts
from circuit_trace.errors import FigureError, InputError
from circuit_trace.model import wrap
from circuit_trace.plan import flat_scores
from circuit_trace.record import Outcome
from circuit_trace.score.circuit import circuit
from circuit_trace.score.edges import score_edges
from circuit_trace.trace import Trace

EXACT_UP_TO = 20_000
"""Models with up to so many edges, each position counted, have each of them patched alone; in larger
ones that is estimated by integrated gradients."""


@dataclass(frozen=True)
class Report:
    """What the demo found: the traced circuit, its table, and the files written.

    `outcome` holds logit differences, the right answer's less the wrong one's: of the clean and the
    corrupt prompt, and of the clean one with the circuit patched and with everything else patched.
    """

    trace: Trace
    table: pd.DataFrame
    outcome: Outcome
    n_edges: int
    method: str
    saved: Path
    pages: tuple[Path, ...]
    explorer: Path
    pictures: tuple[Path, ...]
    no_pictures: str | None


def run_demo(
    hooked: torch.nn.Module, prompts: Prompts, *, n_edges: int, folder: Path, bar: bool = True
) -> Report:
    """Score all edges, patch the strongest that are connected, and draw what flowed along them.

    Raises:
        InputError: The prompts do not fit each other or the model's vocabulary.
    """
    if len(set(prompts.answers)) < 2:
        raise InputError(
            f"The two answers must differ, got {prompts.answers[0]!r} twice: a score is how an edge "
            "moves the logits of one against the other."
        )
    whole = wrap(hooked)
    lengths = [whole.to_tokens(text).shape[1] for text in (prompts.clean, prompts.corrupt)]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"The two prompts must have the same number of tokens, got {lengths[0]} and {lengths[1]}: "
            "what flows is drawn position by position."
        )
    model = wrap(hooked, seq_len=lengths[0], verify=False, anatomy=whole.anatomy)
    method = "exact" if model.graph.n_edges <= EXACT_UP_TO else "eap-ig"
    data = (prompts.clean, prompts.corrupt, *prompts.answers)
    scores = score_edges(model, data, "logit_diff", method=method, bar=bar)
    chosen = circuit(scores, n_edges=n_edges, model=model, method="greedy")

    trace = model.trace(
        prompts.clean,
        corrupt=prompts.corrupt,
        masks=chosen,
        answers=prompts.answers,
        complement=True,
    )
    assert trace.outcome is not None  # answers were given
    table = trace.table()
    table["score"] = flat_scores(model.graph, scores)[list(trace.edges.numbers)].tolist()
    table = table.sort_values("score", key=abs, ascending=False, ignore_index=True)

    saved, page = folder / "circuit.trace", folder / "explorer.html"
    trace.save(saved)
    trace.explore(direction=trace.outcome.answers, file_path=page)
    in_circuit = scores.copy()
    in_circuit.update({name: score * chosen[name] for name, score in scores.items()})
    pages, pictures, no_pictures = [], [], None
    beside = {"side_by_side": True, "orientation": "v", "score_threshold": 1e-9}
    for name, drawn, options in (("circuit", None, {}), ("scores", in_circuit, beside)):
        pages.append(folder / f"{name}.html")
        trace.draw(drawn, file_path=pages[-1], **options)
        try:
            trace.draw(drawn, file_path=folder / f"{name}.png", **options)
        except FigureError as error:
            no_pictures = str(error)
        else:
            pictures.append(folder / f"{name}.png")
    return Report(
        trace,
        table,
        trace.outcome,
        model.graph.n_edges,
        method,
        saved,
        tuple(pages),
        page,
        tuple(pictures),
        no_pictures,
    )
