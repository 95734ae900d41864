"""Wrap a model of GPT-2-XL's shape and trace one prompt of 64 tokens: seconds, and peak memory.

python tests/benchmarks/largest.py
"""

from __future__ import annotations

import resource
import time
import warnings
from typing import Any

import torch

import circuit_trace as ct

GIB = 2**30


def main() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {
        "n_layers": 48,
        "n_heads": 25,
        "d_head": 64,
        "d_model": 1600,
        "d_mlp": 6400,
        "d_vocab": 50257,
        "n_ctx": 1024,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = HookedTransformerConfig(**sizes, seed=0, device="cpu", init_mode="gpt2")
        model = HookedTransformer(cfg).eval()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{n_parameters / 1e9:.2f} billion parameters; {peak():.1f} GiB at most to build it")
    clean, corrupt = (torch.randint(0, cfg.d_vocab, (1, 64)) for _ in range(2))

    start = time.perf_counter()
    wrapped = ct.wrap(model, seq_len=64, verify=False)
    print(f"wrap, {wrapped.n_edges:,} token edges: {time.perf_counter() - start:.3f} s")
    start = time.perf_counter()
    wrapped = ct.wrap(model)
    print(f"wrap and verify, {wrapped.n_edges:,} edges: {time.perf_counter() - start:.2f} s")
    with torch.no_grad():
        model(clean)
        plain = timed(lambda: model(clean))
    patched = wrapped.source_outputs(corrupt)
    everything = {m.name: torch.ones(m.shape) for m in wrapped.graph.modules}
    for what, asked in (
        ("20 edges", {"edges": [wrapped.edges[i] for i in range(0, wrapped.n_edges, 111_752)]}),
        ("all edges", {"masks": everything}),
    ):
        with wrapped.patch(patched, **asked), torch.no_grad():
            taken = timed(lambda: model(clean))
        error = wrapped.last_trace.reconstruction_error()
        print(
            f"trace of {what}: {taken / plain:.2f} × a plain pass, reconstruction error "
            f"{error:.0e}, {peak():.1f} GiB at most so far"
        )


def timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak() -> float:
    """The most memory that this process held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


if __name__ == "__main__":
    main()
