"""How the cost of a patched, recorded pass grows with edges, tokens and layers.

    python examples/scaling.py                # some minutes; writes examples/scaling.png and .json
    python examples/scaling.py --from-json examples/scaling.json   # draws the last numbers again

Every point is the median over pairs of passes, a patched one after a plain one of the same model, as a
ratio. The model has GPT-2-small's shape (12 heads of 64, vocabulary 50,257) and random weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from tqdm import tqdm

import circuit_trace as ct

Points = list[tuple[int, float]]
HERE = Path(__file__).parent
BATCH, SEQ, LAYERS, VOCAB = 8, 64, 12, 50257
EDGES = (1, 10, 100, 1000, 10_000, 32_491)
TOKENS = (64, 128, 256, 512, 1024)
DEPTHS = (3, 6, 12, 24)
SHARES = {"20 edges": 20, "1,000 edges": 1000, "all edges": None}
COLOURS = {"20 edges": "#0072B2", "1,000 edges": "#D55E00", "all edges": "#555555"}


def build(n_layers: int) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {
        "n_layers": n_layers,
        "n_heads": 12,
        "d_head": 64,
        "d_model": 768,
        "d_mlp": 3072,
        "d_vocab": VOCAB,
        "n_ctx": 1024,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HookedTransformer(HookedTransformerConfig(**sizes, seed=0, device="cpu")).eval()


class Series:
    """Patched passes of one model and shape, and how long they take beside plain ones."""

    def __init__(self, model: Any, batch: int, seq: int, pairs: int) -> None:
        self.wrapped = ct.wrap(model, verify=False)
        self.clean, self.corrupt = (torch.randint(0, VOCAB, (batch, seq)) for _ in range(2))
        self.patched = self.wrapped.source_outputs(self.corrupt)
        self.model, self.pairs = model, pairs

    def ratio(self, n_edges: int | None) -> float:
        """The time of a pass with so many edges patched (None: all) over that of a plain one."""
        every = self.wrapped.edges
        n_edges = len(every) if n_edges is None else min(n_edges, len(every))
        numbers = random.Random(0).sample(range(len(every)), n_edges)
        edges = [every[number] for number in numbers]
        ratios = []
        for _ in range(self.pairs + 1):
            plain = self._seconds()
            with self.wrapped.patch(self.patched, edges=edges):
                ratios.append(self._seconds() / plain)
        return statistics.median(ratios[1:])  # the first pair warms up

    @torch.no_grad()
    def _seconds(self) -> float:
        gc.collect()
        start = time.perf_counter()
        logits = self.model(self.clean)
        taken = time.perf_counter() - start
        del logits
        return taken


def measure(pairs: int) -> dict[str, dict[str, Points]]:
    """The three panels: name of the axis to a line's name to its points."""
    model = build(LAYERS)
    bar = tqdm(total=len(EDGES) + len(SHARES) * (len(TOKENS) + len(DEPTHS)), desc="points")

    def point(series: Series, at: int, n_edges: int | None) -> tuple[int, float]:
        ratio = series.ratio(n_edges)
        bar.update()
        return at, ratio

    base = Series(model, BATCH, SEQ, pairs)
    panels: dict[str, dict[str, Points]] = {
        "edges": {"edges": [point(base, n, n) for n in EDGES]},
        "tokens": {name: [] for name in SHARES},
        "layers": {name: [] for name in SHARES},
    }
    del base
    for tokens in TOKENS:
        series = Series(model, tokens // SEQ, SEQ, pairs)
        for name, n_edges in SHARES.items():
            panels["tokens"][name].append(point(series, tokens, n_edges))
    for layers in DEPTHS:
        series = Series(build(layers), BATCH, SEQ, pairs)
        for name, n_edges in SHARES.items():
            panels["layers"][name].append(point(series, layers, n_edges))
    bar.close()
    return panels


def draw(panels: dict[str, dict[str, Points]]) -> go.Figure:
    titles = (
        f"edges patched<br><sup>{LAYERS} layers, {BATCH} × {SEQ} tokens</sup>",
        f"tokens in the batch<br><sup>{LAYERS} layers, prompts of {SEQ} tokens</sup>",
        f"layers<br><sup>{BATCH} × {SEQ} tokens</sup>",
    )
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=titles)
    for column, lines in enumerate(panels.values(), start=1):
        for name, points in lines.items():
            x, y = zip(*points, strict=True)
            figure.add_scatter(
                x=x,
                y=y,
                name=name,
                mode="lines+markers",
                line={"color": COLOURS.get(name, "#009E73"), "width": 2},
                showlegend=column == 2,
                row=1,
                col=column,
            )
        ticks = sorted({at for points in lines.values() for at, _ in points})
        figure.update_xaxes(
            type="log", tickvals=ticks, ticktext=[_short(at) for at in ticks], row=1, col=column
        )
    figure.add_hline(y=1, line={"color": "#999999", "dash": "dot", "width": 1})
    figure.update_yaxes(rangemode="tozero", gridcolor="#E5E5E5", zeroline=False)
    figure.update_yaxes(title="time / plain forward pass", row=1, col=1)
    figure.update_xaxes(showline=True, linecolor="#999999", ticks="outside")
    figure.update_layout(
        template="none",
        width=1000,
        height=340,
        margin={"l": 60, "r": 20, "t": 60, "b": 80},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.22},
        font={"family": "Open Sans, Arial, sans-serif", "size": 13, "color": "#222222"},
    )
    return figure


def _short(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of passes per point")
    parser.add_argument("--from-json", type=Path, metavar="PATH", help="draw numbers taken before")
    parser.add_argument("--out", type=Path, default=HERE / "scaling.png")
    options = parser.parse_args()
    if options.from_json:
        panels = json.loads(options.from_json.read_text())
    else:
        panels = measure(options.pairs)
        options.out.with_suffix(".json").write_text(json.dumps(panels, indent=1) + "\n")
    draw(panels).write_image(options.out, scale=2)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
