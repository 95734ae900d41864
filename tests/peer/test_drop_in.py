"""The same script text, with auto-circuit's imports and with ours, in one process on one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from circuit_trace.integrations.models import load_bundled_model
from tests.integrations.auto_circuit_scripts import (
    SCRIPTS,
    fingerprint,
    flagged_copy,
    golden,
    links_of,
    run,
    with_our_imports,
    write_dataset,
    write_golden,
)

if not os.environ.get("CIRCUIT_TRACE_REQUIRE_PEER"):
    pytest.importorskip("auto_circuit", reason="auto-circuit runs on TransformerLens 2.16 alone")

CLOSE = {"rtol": 1e-4, "atol": 3e-5}
LIVE_WIDTH = 0.8
"""The width of every link that auto-circuit draws of a pass; ours is the mask."""


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_results(name: str, tmp_path: Path) -> None:
    theirs = results_of_the_peer(name, tmp_path)
    dataset = tmp_path / "prompts.json"
    ours = run(with_our_imports(SCRIPTS[name]), load_bundled_model(), dataset)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert_same(ours[key], expected, f"{name}: {key}")
    assert fingerprint(theirs) == pytest.approx(golden(name), rel=1e-4, abs=1e-4)


def results_of_the_peer(name: str, folder: Path) -> dict[str, Any]:
    is_split = "separate_qkv=False" not in SCRIPTS[name]
    twin = flagged_copy(load_bundled_model(), is_split)
    return run(SCRIPTS[name], twin, write_dataset(folder / "prompts.json"))


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Compare results of any kind, figures by the links that they draw."""
    if isinstance(theirs, torch.Tensor):
        assert_close(ours, theirs.clone(), **CLOSE, msg=lambda text: f"{where}: {text}")
    elif isinstance(theirs, Mapping):
        assert set(ours) == set(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}: {key}")
    elif isinstance(theirs, list | tuple) and theirs and hasattr(theirs[0], "link"):
        assert_same_links(ours, theirs, where)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for number, (mine, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, value, f"{where}: {number}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=3e-5), where
    elif hasattr(theirs, "data"):
        assert_same(ours.data, theirs.data, where)
    else:
        assert ours == theirs, where


def assert_same_links(ours: Any, theirs: Any, where: str) -> None:
    """Compare diagrams (one or more, ours has none for a position without edges) by their links."""
    expected = links_of(theirs)
    assert expected, where
    assert [link[:2] for link in links_of(ours)] == [link[:2] for link in expected], where
    is_of_scores = all(value != LIVE_WIDTH for _, _, value in expected)
    if is_of_scores:
        widths = [value for _, _, value in expected]
        assert [value for _, _, value in links_of(ours)] == pytest.approx(widths, rel=1e-4), where


if __name__ == "__main__":  # what it computes becomes what the tests without it expect
    with TemporaryDirectory() as folder:
        found = {name: fingerprint(results_of_the_peer(name, Path(folder))) for name in SCRIPTS}
    write_golden(found)
