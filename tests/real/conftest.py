"""The real pretrained model, which `make test-real` makes; without it these tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import circuit_trace as ct

ASKED_FOR = "CIRCUIT_TRACE_REAL_MODEL"
"""The environment variable that names the model's folder; where it is set, a missing one fails."""

USUAL = Path(__file__).parents[2] / ".venv-real" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def folder() -> Path:
    """The folder of the model, in Hugging Face's format."""
    asked_for = os.environ.get(ASKED_FOR)
    found = Path(asked_for or USUAL)
    if not (found / "config.json").is_file():
        if asked_for:
            pytest.fail(f"no model in {found}, which {ASKED_FOR} names", pytrace=False)
        pytest.skip("the real model is not here: make test-real makes it")
    return found


@pytest.fixture(scope="session")
def bridge(folder: Path) -> Any:
    """The model as TransformerLens has it."""
    model_bridge = pytest.importorskip("transformer_lens.model_bridge")
    return model_bridge.TransformerBridge.boot_transformers(str(folder), device="cpu")


@pytest.fixture(scope="session")
def model(bridge: Any) -> ct.PatchableModel:
    """It wrapped, all positions at once."""
    return ct.wrap(bridge)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """This model is large enough for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)
