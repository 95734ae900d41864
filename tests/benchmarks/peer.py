"""Patching by circuit_trace and by auto-circuit 1.0.1 in one process, on one model and the same edges.

    make benchmark-peer

auto-circuit runs on TransformerLens 2 alone, in the environment that `make test-compat` makes. The
model has GPT-2-small's shape; each ratio is the median over rounds of a plain pass, ours and theirs.
The logits of both are compared first, so that what is timed is the same computation.
"""

from __future__ import annotations

import argparse
import copy
import gc
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from tests.benchmarks.engine import D_VOCAB, build_hooked, shape


def timed(model: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[float, Tensor]:
    gc.collect()
    start = time.perf_counter()
    logits = model(tokens)
    return time.perf_counter() - start, logits


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=shape, default=(8, 64), metavar="BATCHxSEQ")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--edges", type=int, nargs="+", default=[20, 1000])
    options = parser.parse_args()

    # Not above: elsewhere than in its own environment auto-circuit is not there to be imported.
    from auto_circuit.types import AblationType
    from auto_circuit.utils.ablation_activations import src_ablations
    from auto_circuit.utils.graph_utils import patch_mode, patchable_model

    model = build_hooked().eval()
    twin = copy.deepcopy(model)  # auto-circuit rewrites the model that it is given
    twin.set_use_attn_result(True)
    twin.set_use_hook_mlp_in(True)
    twin.set_use_split_qkv_input(True)
    clean, corrupt = (torch.randint(0, D_VOCAB, options.shape) for _ in range(2))

    start = time.perf_counter()
    ours = ct.wrap(model)
    middle = time.perf_counter()
    theirs = patchable_model(twin, factorized=True, separate_qkv=True)
    end = time.perf_counter()
    print(f"wrap: ours {middle - start:.2f} s, theirs {end - middle:.2f} s")

    patched = ours.source_outputs(corrupt)
    peers_patched = src_ablations(theirs, corrupt, AblationType.RESAMPLE)
    peers_edges = {edge.name: edge for edge in theirs.edges}
    assert peers_edges.keys() == {edge.name for edge in ours.edges}
    for n_edges in options.edges:
        names = random.Random(0).sample(sorted(peers_edges), n_edges)

        peers_chosen = [peers_edges[name] for name in names]
        rounds = []
        for _ in range(options.repeats):
            plain, _ = timed(model, clean)
            with ours.patch(patched, edges=names):
                mine, logits = timed(model, clean)
            with patch_mode(theirs, peers_patched, peers_chosen):
                peers, peers_logits = timed(theirs, clean)
            assert_close(logits, peers_logits, rtol=1e-4, atol=1e-4)
            rounds.append((plain, mine, peers))
        plain, mine, peers = (statistics.median(one) for one in zip(*rounds, strict=True))
        ratio = statistics.median(theirs_took / took for _, took, theirs_took in rounds)
        print(
            f"{n_edges:6,} edges: ours {mine / plain:.2f} × a plain pass, theirs "
            f"{peers / plain:.1f} ×; ours is {ratio:.1f} × faster",
            flush=True,
        )


if __name__ == "__main__":
    main()
