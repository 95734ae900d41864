"""Draw every view: of the bundled model's circuit, and of a random model of GPT-2-small's shape.

make gallery                          # into out/gallery
python examples/gallery.py --only dark --out pictures
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from tqdm import tqdm

import circuit_trace as ct
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT

View = tuple[str, Callable[[Path], Any]]

CIRCUIT = {
    (2, "Resid Start->A0.0.V"): 1.0,
    (2, "Resid Start->A0.1.V"): 1.0,
    (2, "MLP 0->A1.0.V"): 1.0,
    (14, "A0.0->A1.0.Q"): 1.0,
    (14, "A0.1->MLP 0"): 1.0,
    (14, "MLP 0->A1.0.Q"): 1.0,
    (14, "A1.0->MLP 1"): 1.0,
    (14, "A1.0->Resid End"): 1.0,
    (14, "MLP 1->Resid End"): 0.5,
    (14, "A1.3->Resid End"): -0.5,
}


def bundled() -> Iterator[View]:
    """The circuit of the small trained model, in every way that an edge can be shown."""
    bare = ct.load_model("bundled")
    model = ct.wrap(bare, seq_len=15)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges=CIRCUIT)
    for name, options in {
        "live": {},
        "live_vertical": {"orientation": "v"},
        "live_all_positions": {"show_all_seq_pos": True},
        "live_dark": {"theme": "dark"},
        "live_cosine": {"label": "cosine", "width": "delta"},
        "live_values": {"label": "values", "width": "received"},
        "live_projection": {"label": "projection", "width": "projection", "direction": ANSWERS},
        "live_tokens": {"label": "tokens", "width": "delta", "table": True, "direction": ANSWERS},
        "live_own_words": {"label": lambda flow: f"heard by {flow.edge.dest.unit}"},
    }.items():
        yield name, lambda path, options=options: trace.draw(file_path=path, **options)
    few = model.trace(CLEAN, corrupt=CORRUPT, edges=[(14, "A0.0->A1.0.Q"), (14, "A1.0->Resid End")])
    yield "live_layers", lambda path: few.draw(layer_spacing=True, file_path=path)
    yield (
        "column",
        lambda path: few.draw(orientation="v", file_path=path.with_suffix(".pdf"), page_width=3.25),
    )
    yield "in_a_figure_of_your_own", lambda path: beside_a_plot(trace, path)
    yield (
        "explorer",
        lambda path: trace.explore(direction=ANSWERS, file_path=path.with_suffix(".html")),
    )
    # A second pass with other masks, to compare.
    masks = {**CIRCUIT, (14, "A1.2->Resid End"): 1.0, (14, "A1.0->MLP 1"): 0.4}
    masks |= {(14, "MLP 1->Resid End"): 1.0, (14, "A1.3->Resid End"): 0.5}
    del masks[2, "Resid Start->A0.0.V"], masks[2, "Resid Start->A0.1.V"]
    other = model.trace(CLEAN, corrupt=CORRUPT, edges=masks)
    for name, options in {
        "difference": {},
        "difference_received": {"width": "received"},
        "difference_side_by_side": {"side_by_side": True},
        "difference_side_by_side_dark": {
            "side_by_side": True,
            "orientation": "v",
            "theme": "dark",
            "names": ("first", "second"),
        },
    }.items():
        yield (
            name,
            lambda path, options=options: ct.draw_difference(
                trace, other, file_path=path, **options
            ),
        )
    whole = ct.wrap(bare)
    scores = ct.score_edges(whole, (CLEAN, CORRUPT, *ANSWERS), bar=False)
    yield "scores", lambda path: ct.draw_seq_graph(whole, scores, 0.3, file_path=path)
    backwards = ct.score_edges(whole, (CORRUPT, CLEAN, *ANSWERS), bar=False)
    yield (
        "difference_scores",
        lambda path: ct.draw_difference(
            scores, backwards, model=whole, score_threshold=0.7, file_path=path
        ),
    )
    yield (
        "scores_dark",
        lambda path: ct.draw_seq_graph(
            whole, scores, 0.3, theme="dark", orientation="v", file_path=path
        ),
    )

    pairs = (CLEAN, CORRUPT, *ANSWERS)
    by_position = ct.score_edges(model, pairs, bar=False)
    chosen = ct.circuit(by_position, n_edges=20)
    model.trace(CLEAN, corrupt=CORRUPT, masks=chosen)
    in_circuit = {name: score * chosen[name] for name, score in by_position.items()}
    yield (
        "scores_beside_live",
        lambda path: ct.draw_seq_graph(
            model, in_circuit, 1e-9, side_by_side=True, orientation="v", file_path=path
        ),
    )
    curves = {}
    for method in ("eap", "magnitude", "exact"):
        found = ct.score_edges(model, pairs, method=method, bar=False)
        curves[method] = ct.faithfulness(model, pairs, found, bar=False)
    yield "faithfulness", lambda path: ct.draw_faithfulness(curves, file_path=path)


def beside_a_plot(trace: ct.Trace, path: Path) -> None:
    """One position's diagram above the norms of what its sources wrote."""
    diagram, _ = ct.net_viz(trace, trace.edges, None, (0.55, 1.0), seq_idx=14, size=(820, 230))
    rows = trace.table().query("seq_idx == 14").drop_duplicates("src")
    bars = go.Bar(x=rows["src"], y=rows["delta_norm"], marker_color="#D55E00")
    figure = go.Figure([diagram, bars])
    figure.update_layout(
        width=900,
        height=560,
        margin={"l": 50, "r": 30, "t": 30, "b": 40},
        yaxis={"domain": [0, 0.4], "title": "‖Δ‖"},
        title={"text": "What changes at the last token", "x": 0.5},
        template="plotly_white",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_image(path, scale=2)


def large() -> Iterator[View]:
    """32,491 edges of a random model."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {
        "n_layers": 12,
        "n_heads": 12,
        "d_head": 64,
        "d_model": 768,
        "d_vocab": 1000,
        "n_ctx": 64,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = HookedTransformer(HookedTransformerConfig(**sizes, seed=0, device="cpu"))
    model = ct.wrap(bare)
    generator = torch.Generator().manual_seed(0)
    scores = {m.name: torch.randn(m.shape, generator=generator) for m in model.graph.modules}
    clean, corrupt = torch.randint(0, 1000, (2, 1, 16), generator=generator)
    edges = [model.edges[number] for number in range(0, model.n_edges, 1300)]
    trace = model.trace(clean, corrupt=corrupt, edges=edges)
    for name, most in (("large_scores", 150), ("large_strongest", 30)):
        yield (
            name,
            lambda path, most=most: ct.draw_seq_graph(
                model, scores, 0.01, max_edges=most, file_path=path
            ),
        )
    yield "large_live", lambda path: trace.draw(file_path=path)
    yield "large_live_layers", lambda path: trace.draw(layer_spacing=True, file_path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gallery"))
    parser.add_argument("--only", default="", help="draw the views whose name has this in it")
    parser.add_argument("--format", default="png", help="an extension that draw_seq_graph knows")
    options = parser.parse_args()
    views = [view for part in (bundled, large) for view in part() if options.only in view[0]]
    for name, draw in tqdm(views, desc="views"):
        start = time.perf_counter()
        draw(options.out / f"{name}.{options.format}")
        tqdm.write(f"{name:20} {time.perf_counter() - start:5.1f} s")
    print(f"wrote {len(views)} pictures into {options.out}")


if __name__ == "__main__":
    main()
