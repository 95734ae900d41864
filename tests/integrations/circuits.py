"""Scores for tests of files, and how files and messages are compared."""

from __future__ import annotations

import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.graph import Graph, Shape
from circuit_trace.integrations.flat import flatten
from circuit_trace.plan import unflat_scores

SHAPE = Shape(2, 3, 3)
PLAIN = SHAPE.graph()
AT_2 = SHAPE.graph(2)
GROUPED = Shape(2, 4, 2).graph()
PARALLEL = Shape(2, 3, 3, parallel=True).graph()
ATTENTION = Shape(2, 3, 3, attn_only=True).graph()
UNSPLIT = Shape(2, 3, 3, separate_qkv=False).graph()


def scores_for(
    graph: Graph, *, dtype: torch.dtype = torch.float32, seed: int = 0, share: float = 0.6
) -> ct.PruneScores:
    """Random scores of every size, a share of the edges without."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(graph.n_edges, generator=generator, dtype=torch.float64)
    sizes = 10.0 ** torch.randint(-6, 6, (graph.n_edges,), generator=generator)
    kept = torch.rand(graph.n_edges, generator=generator) < share
    return unflat_scores(graph, torch.where(kept, values * sizes, 0.0).to(dtype))


def circuit_for(graph: Graph, *, seed: int = 0, share: float = 0.4) -> ct.PruneScores:
    """A random circuit: 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    return unflat_scores(graph, (torch.rand(graph.n_edges, generator=generator) < share).float())


def assert_same(found: ct.PruneScores, expected: ct.PruneScores) -> None:
    """The same modules, precision and bits."""
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert found[name].dtype == score.dtype, name
        assert torch.equal(found[name], score), name


def edge_scores(graph: Graph, scores: ct.PruneScores) -> dict[tuple[str, str, int | None], float]:
    """Every edge's score by the names of its ends and its position, one by one."""
    flat = flatten(graph, scores)
    return {
        (edge.src.name, edge.dest.name, edge.seq_idx): flat[number].item()
        for number, edge in enumerate(graph.edges)
    }


@contextmanager
def no_warning() -> Iterator[None]:
    """Nothing in here warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def warned(what: str) -> Any:
    """That something is not quite the same."""
    return pytest.warns(ct.FormatWarning, match=what)


def read(path: Path, *args: Any, **options: Any) -> ct.PruneScores:
    """Load scores whatever the file warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ct.FormatWarning)
        return ct.load_scores(path, *args, **options)


def write(scores: ct.PruneScores, path: Path, *args: Any, **options: Any) -> Path:
    """Save scores whatever the format warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ct.FormatWarning)
        ct.save_scores(scores, path, *args, **options)
    return path


def saved(data: Any, path: Path) -> Path:
    """What torch makes of any data, as a file."""
    torch.save(data, path)
    return path


def refused(path: Path, *args: Any, **options: Any) -> str:
    """The message that a file is refused with, without its path."""
    with pytest.raises(ct.CircuitTraceError) as caught:
        read(path, *args, **options)
    return str(caught.value).removeprefix(f"{str(path)!r}: ")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with some bytes changed, lost, doubled or cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(found)) if found else 0
        kind = rng.randrange(5)
        if kind == 0 and found:
            found[at] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + rng.choice((1, 2, 30))]
        elif kind == 2:
            found[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3))))
        elif kind == 3:
            start = rng.randrange(len(found) + 1)
            found[at:at] = found[start : start + rng.choice((1, 8, 60))]
        else:
            del found[at : None if rng.random() < 0.2 else at + 1]
    return bytes(found)


def repacked(data: bytes, change: Callable[[str, bytes], bytes], method: int = 0) -> bytes:
    """An archive with other contents and right checksums."""
    packed = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(packed, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return packed.getvalue()
