"""What scoring every edge costs: ratios to the passes forward and backward that it cannot do without.

    python -m tests.benchmarks.scores --model both --repeats 7

GPT-2-small's shape, random weights. Each ratio is the median over rounds in which both are timed, one
after the other. The plain passes differentiate with respect to the embedding's output alone, which is
less than `loss.backward()` does; memory is compared with that. Where TransformerLens has
`attribution_patch` (4.3 and later), ours is compared with it prompt by prompt.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

import circuit_trace as ct
from tests.benchmarks.engine import BUILDERS, D_VOCAB, MIB, SHAPES, Row, line, peak_of, shape

STEPS = 5


def metric(logits: Tensor, batch: Any = None) -> Tensor:
    """A logit difference, of prompts whose answers are all alike."""
    return logits[:, -1, 3] - logits[:, -1, 5]


class Bench:
    """One model and one shape of input, and the measurements on them."""

    def __init__(self, model: Any, batch: int, seq: int, *, device: str, repeats: int) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randint, D_VOCAB, (batch, seq), generator=generator)
        self.model, self.device, self.repeats = model, device, repeats
        self.clean, self.corrupt = draw().to(device), draw().to(device)
        self.by_position = ct.wrap(model, seq_len=seq)
        self.summed = ct.wrap(model)

    def rows(self) -> Iterator[Row]:
        eap = partial(self.plain, 2, 1)
        name = "EAP, all 32,491 edges at each position / 2 passes forward + 1 backward"
        yield self.ratio(name, self.scored(self.by_position, "eap"), eap, 1.5)
        yield self.ratio("… summed over positions", self.scored(self.summed, "eap"), eap, 1.5)
        name = f"EAP-IG, {STEPS} steps, at each position / 2 forward + {STEPS} forward and backward"
        integrated = self.scored(self.by_position, "eap-ig")
        yield self.ratio(name, integrated, partial(self.plain, 2 + STEPS, STEPS), 1.5)
        whole = peak_of(self.backward, self.device)
        yield Row("peak of a pass forward and loss.backward()", whole / MIB, "MiB")
        for method in ("eap", "eap-ig"):
            peak = peak_of(self.scored(self.by_position, method), self.device)
            yield Row(f"peak of {method}, at each position / that", peak / whole, "×", 2.0)
        if theirs := self.theirs():
            ours = self.scored(self.by_position, "eap", n_prompts=1)
            yield self.ratio(
                "EAP of one prompt / TransformerLens' attribution_patch", ours, theirs, 0.1
            )

    def scored(
        self, model: ct.PatchableModel, method: str, n_prompts: int | None = None
    ) -> Callable[[], Any]:
        data = (self.clean[:n_prompts], self.corrupt[:n_prompts])
        return partial(ct.score_edges, model, data, metric, method=method, steps=STEPS, bar=False)

    def plain(self, forward: int, backward: int) -> None:
        """So many plain passes, some of them backward as well."""
        for number in range(forward):
            if number < forward - backward:
                with torch.no_grad():
                    self.model(self.corrupt)
                continue
            starts: list[Tensor] = []

            def start(tensor: Tensor, hook: Any, starts: list[Tensor] = starts) -> Tensor:
                starts.append(tensor.detach().requires_grad_())
                return starts[0]

            hooks = [("blocks.0.hook_resid_pre", start)]
            logits = self.model.run_with_hooks(self.clean, fwd_hooks=hooks)
            torch.autograd.grad(metric(logits).sum(), starts)

    def backward(self) -> None:
        metric(self.model(self.clean)).sum().backward()
        self.model.zero_grad()

    def theirs(self) -> Callable[[], Any] | None:
        if tuple(map(int, version("transformer-lens").split(".")[:2])) < (4, 3):
            return None  # before, it scores nodes alone
        from transformer_lens.tools.analysis import attribution_patching

        config = attribution_patching.EdgeAttributionConfig(granularity="edge")
        one = (self.clean[:1], self.corrupt[:1])
        scalar = lambda logits: metric(logits).sum()  # noqa: E731
        return partial(attribution_patching.attribution_patch, self.model, *one, scalar, config)

    def ratio(
        self, what: str, run: Callable[[], Any], reference: Callable[[], Any], aim: float
    ) -> Row:
        run()  # warm
        # What takes minutes needs no many rounds to tell a ratio of ten.
        first = self.timed(reference)
        repeats = self.repeats if first < 20 else 2
        ratios = []
        for _ in range(repeats):
            plain = self.timed(reference)
            ratios.append(self.timed(run) / plain)
        low, _, high = statistics.quantiles(ratios, n=4)
        return Row(what, statistics.median(ratios), "×", aim, None, (low, high))

    def timed(self, run: Callable[[], Any]) -> float:
        gc.collect()
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="BATCHxSEQ")
    parser.add_argument("--repeats", type=int, default=7, help="rounds per ratio")
    parser.add_argument("--model", choices=[*BUILDERS, "both"], default="both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{machine}, torch {torch.__version__}, median of {options.repeats} rounds")
    for kind in BUILDERS if options.model == "both" else [options.model]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = BUILDERS[kind]().eval().to(options.device)
        except ImportError as error:  # TransformerLens 2 has no bridge, 4 nothing else
            print(f"\n{kind}: not in this TransformerLens ({error})")
            continue
        for batch, seq in options.shapes:
            print(f"\n{kind}, batch {batch} × {seq} tokens")
            measure = {"device": options.device, "repeats": options.repeats}
            for row in Bench(model, batch, seq, **measure).rows():
                print(line(row), flush=True)


if __name__ == "__main__":
    main()
