"""What patching costs: times as ratios to the plain forward pass of the same model, and memory.

    python tests/benchmarks/engine.py --model both --repeats 9 --json out/benchmark.json

The model has GPT-2-small's shape and random weights. Each time is the median over pairs (a plain pass,
then the measured one), so that other work on the machine slows both alike; where there is much of it,
`--threads 1 --cpu-time` still gives steady ratios. Nothing here is a test: a limit that is missed is
marked, not raised.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import circuit_trace as ct

N_LAYERS, N_HEADS, D_MODEL, D_MLP, D_VOCAB, N_CTX = 12, 12, 768, 3072, 50257, 1024
SHAPES = ((8, 64), (4, 16))
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One measurement and what it should reach; `spread` is the middle half of the pairs."""

    what: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    spread: tuple[float, float] | None = None

    @property
    def mark(self) -> str:
        if self.must is not None and self.value > self.must:
            return "MISSED"
        if self.aim is not None:
            return "aim" if self.value <= self.aim else "ok"
        return "" if self.must is None else "ok"


def build_hooked() -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "d_head": D_MODEL // N_HEADS,
        "d_model": D_MODEL,
        "d_mlp": D_MLP,
        "d_vocab": D_VOCAB,
        "n_ctx": N_CTX,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
    }
    return HookedTransformer(HookedTransformerConfig(**sizes, seed=0, device="cpu"))


def build_bridge() -> Any:
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())  # GPT-2 small is its default
    return build_bridge_from_module(
        model, architecture="GPT2LMHeadModel", hf_config=model.config, tokenizer=None
    )


BUILDERS = {"hooked": build_hooked, "bridge": build_bridge}


class Bench:
    """One model and one shape of input, and the measurements on them."""

    def __init__(
        self,
        model: Any,
        batch: int,
        seq: int,
        *,
        device: str,
        repeats: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randint, D_VOCAB, (batch, seq), generator=generator)
        self.model, self.device, self.repeats, self.clock = model, device, repeats, clock
        self.clean, self.corrupt = draw().to(device), draw().to(device)
        self.wrapped = ct.wrap(model)
        self.token_wrapped = ct.wrap(model, seq_len=seq)
        self.patched = self.wrapped.source_outputs(self.corrupt)

    def rows(self) -> Iterator[Row]:
        yield from self.set_up()
        yield from self.passes()
        yield from self.memory()

    def set_up(self) -> Iterator[Row]:
        wrap = partial(ct.wrap, self.model, seq_len=64)
        yield self.seconds("wrap, 2,079,424 token edges", wrap, 0.25, 0.010)
        yield self.seconds("wrap, verify=False", partial(wrap, verify=False))
        enter, leave = [], []
        edges = self.some_edges(20)["edges"]
        for _ in range(self.repeats):
            context = self.wrapped.patch(self.patched, edges=edges)
            enter.append(self.timed(context.__enter__))
            leave.append(self.timed(lambda context=context: context.__exit__(None, None, None)))
        yield Row("enter a patch of 20 edges", statistics.median(enter) * 1e3, "ms", 20, 2)
        yield Row("leave it", statistics.median(leave) * 1e3, "ms")

    def passes(self) -> Iterator[Row]:
        yield self.ratio("record only", {})
        yield self.ratio("20 edges", self.some_edges(20), 1.10, 1.02)
        yield self.ratio("1,000 edges", self.some_edges(1000), 1.5, 1.2)
        yield self.ratio("all 32,491 edges", self.all_edges(), 3.0, 2.0)
        for n, must, aim in ((20, 1.10, 1.02), (1000, 1.5, 1.2)):
            edges = self.some_edges(n, self.token_wrapped)
            yield self.ratio(f"{n:,} token edges", edges, must, aim, wrapped=self.token_wrapped)
        whole = partial(self.wrapped.trace, self.clean, patched=self.patched, **self.some_edges(20))
        yield self.paired("trace(20 edges), set-up included", whole)
        outputs = partial(self.wrapped.source_outputs, self.corrupt)
        yield self.paired("source_outputs", outputs)

    def memory(self) -> Iterator[Row]:
        trace = self.wrapped.trace(self.clean, patched=self.patched, **self.some_edges(20))
        model = storages([*self.model.parameters(), *self.model.buffers()])
        logits = storages(trace.logits)
        current = storages(trace.current)
        held = storages(trace)
        codes = sum(site.code.nbytes for site in trace.current.sites)
        what = "bytes the record adds / those of hook_z, hook_mlp_out and the embedding"
        for name, group, must in (
            (f"{what}: current", current, None),
            ("… with the patched outputs, masks and inputs", held - logits, 2.2),
            ("… with the logits, which the caller gets anyway", held, None),
        ):
            yield Row(name, total(group - model) / codes, "×", must)
        del trace, held, current, logits
        weights = total(model)
        plain = self.peak(nullcontext())
        for name, asked in (
            ("20 edges", self.some_edges(20)),
            ("1,000 edges", self.some_edges(1000)),
            ("all edges", self.all_edges()),
        ):
            peak = self.peak(self.wrapped.patch(self.patched, **asked))
            yield Row(f"peak of a pass with {name} / plain", peak / plain, "×")
            ratio = (peak + weights + codes) / (plain + weights)
            yield Row("… with the weights and the patched outputs", ratio, "×", 5.0)
        yield Row("peak of the plain pass", plain / MIB, "MiB")

    def some_edges(self, n: int, wrapped: ct.PatchableModel | None = None) -> dict[str, Any]:
        every = (wrapped or self.wrapped).edges
        return {"edges": [every[i] for i in random.Random(0).sample(range(len(every)), n)]}

    def all_edges(self) -> dict[str, Any]:
        return {"masks": {m.name: torch.ones(m.shape) for m in self.wrapped.graph.modules}}

    def ratio(
        self,
        what: str,
        asked: dict[str, Any],
        must: float | None = None,
        aim: float | None = None,
        *,
        wrapped: ct.PatchableModel | None = None,
    ) -> Row:
        """A pass inside an open patch; the context is entered again for each, outside the clock."""

        def patched_pass() -> float:
            with (wrapped or self.wrapped).patch(self.patched, **asked):
                return self.timed(self.plain)

        return self.compare(what, patched_pass, must, aim)

    def paired(self, what: str, run: Callable[[], Any]) -> Row:
        return self.compare(what, lambda: self.timed(run))

    def compare(
        self,
        what: str,
        seconds: Callable[[], float],
        must: float | None = None,
        aim: float | None = None,
    ) -> Row:
        seconds()  # warm
        ratios = []
        for _ in range(self.repeats):
            plain = self.timed(self.plain)
            ratios.append(seconds() / plain)
        low, _, high = statistics.quantiles(ratios, n=4)
        return Row(what, statistics.median(ratios), "×", must, aim, (low, high))

    def seconds(
        self, what: str, run: Callable[[], Any], must: float | None = None, aim: float | None = None
    ) -> Row:
        run()
        taken = [self.timed(run) for _ in range(self.repeats)]
        return Row(what, statistics.median(taken), "s", must, aim)

    @torch.no_grad()
    def plain(self) -> Any:
        return self.model(self.clean)

    def timed(self, run: Callable[[], Any]) -> float:
        gc.collect()  # the tensors of the last run go now, not inside the clock
        self.synchronize()
        start = self.clock()
        kept = run()
        self.synchronize()
        taken = self.clock() - start
        del kept
        return taken

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self, context: Any) -> int:
        """The most bytes allocated at once by one pass in the context, above those before it."""
        with context:
            return peak_of(self.plain, self.device)


def peak_of(run: Callable[[], Any], device: str) -> int:
    """The most bytes that a run allocates at once, above those before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    # Torch's allocator reports every tensor that comes and goes, temporaries of operators too.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, now)
    return most


def storages(value: Any) -> set[tuple[int, int]]:
    """The memory (address and bytes) behind every tensor in nested records, each storage once."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {(storage.data_ptr(), storage.nbytes())}
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*(storages(one) for one in value))
    return set()


def total(group: set[tuple[int, int]]) -> int:
    return sum(nbytes for _, nbytes in group)


def shape(text: str) -> tuple[int, int]:
    batch, seq = text.split("x")
    return int(batch), int(seq)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="BATCHxSEQ")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of passes per row")
    parser.add_argument("--model", choices=[*BUILDERS, "both"], default="both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; as many as torch takes if omitted"
    )
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process")
    parser.add_argument("--json", metavar="PATH", help="write the numbers to this file as well")
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    measure = {
        "device": options.device,
        "repeats": options.repeats,
        "clock": time.process_time if options.cpu_time else time.perf_counter,
    }
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    clock = "CPU" if options.cpu_time else "wall"
    print(f"{machine}, torch {torch.__version__}, {clock} time, median of {options.repeats} pairs")
    results: dict[str, list[dict[str, Any]]] = {}
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
            print(f"{'':74} {'value':>9}      {'middle half':>13} {'must':>6} {'aim':>6}")
            rows = results[f"{kind} {batch}x{seq}"] = []
            for row in Bench(model, batch, seq, **measure).rows():
                print(line(row), flush=True)
                rows.append(asdict(row))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "torch": torch.__version__, "rows": results}, file)


def line(row: Row) -> str:
    spread = "" if row.spread is None else f"{row.spread[0]:.2f} – {row.spread[1]:.2f}"
    must, aim = ("" if limit is None else f"{limit:g}" for limit in (row.must, row.aim))
    columns = f"{row.what:74} {row.value:9.3f} {row.unit:4} {spread:>13} {must:>6} {aim:>6}"
    return f"{columns} {row.mark}"


if __name__ == "__main__":
    main()
