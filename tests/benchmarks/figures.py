"""How long pictures take: GPT-2-small's shape, 32,491 edges, random weights.

python tests/benchmarks/figures.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import circuit_trace as ct

SIZES: dict[str, Any] = {
    "n_layers": 12,
    "n_heads": 12,
    "d_head": 64,
    "d_model": 768,
    "d_vocab": 50257,
    "n_ctx": 64,
    "act_fn": "gelu_new",
    "normalization_type": "LN",
}


def seconds(make: Callable[[], Any], runs: int) -> float:
    """The median time of some runs, after one that is not counted."""
    times = []
    make()
    for _ in range(runs):
        start = time.perf_counter()
        make()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = HookedTransformer(HookedTransformerConfig(**SIZES, seed=0, device="cpu"))
    model = ct.wrap(bare)
    generator = torch.Generator().manual_seed(0)
    scores = {m.name: torch.randn(m.shape, generator=generator) for m in model.graph.modules}
    clean, corrupt = torch.randint(0, 50257, (2, 1, 16), generator=generator)
    thousand = [model.edges[number] for number in range(0, model.n_edges, 33)][:1000]
    trace = model.trace(clean, corrupt=corrupt, edges=thousand)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        rows: dict[str, tuple[Callable[[], Any], float | None]] = {
            "32,491 scores, 500 drawn": (lambda: ct.draw_seq_graph(model, scores), 1.0),
            "1,000 live edges, 500 drawn": (lambda: trace.draw(), 0.5),
            "1,000 live edges, all drawn": (lambda: trace.draw(max_edges=None), 0.5),
            "1,000 edges, labels: tokens": (lambda: trace.draw(label="tokens"), None),
            "table of 1,000 edges": (lambda: trace.table(), None),
            "table of all 32,491": (lambda: model.trace(clean, corrupt=corrupt).table(), None),
            "explorer of 1,000 edges": (lambda: trace.explore(file_path=page), None),
        }
        print("| | seconds | limit |\n| --- | --- | --- |")
        for name, (make, limit) in tqdm(rows.items(), leave=False):
            took = seconds(make, options.runs)
            tqdm.write(f"| {name} | {took:.2f} | {'' if limit is None else f'{limit:.1f}'} |")
        explorer = page.stat().st_size / 1e6
        trace.draw(file_path=page)
        figure = page.stat().st_size / 1e6
        trace.draw(file_path=page, include_plotlyjs="cdn")
        small = page.stat().st_size / 1e6
    print(
        f"\nPages in MB: figure {figure:.2f}, with plotly.js fetched {small:.2f}, "
        f"explorer {explorer:.2f}."
    )


if __name__ == "__main__":
    main()
