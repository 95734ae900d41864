"""Shared fixtures; shapes in type annotations are checked while the tests run."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from jaxtyping import config, install_import_hook

from tests import typecheck  # noqa: F401  the import hook finds it under this name

CHECKED = ("anatomy", "graph", "plan", "hooks.delta", "hooks.record", "hooks.verify", "trace")
CHECKED += ("model", "demo", "integrations", "score.differences")
CHECKED += ("score.gradients", "score.methods", "score.metrics")
"""All but `hooks.attach`, `hooks.scope` and `hooks.session`: they define a function for each hook, and to
compile a check for each takes two thirds of the whole suite's time. Nor `visualize`, for the same
reason. They have no shapes to check."""

install_import_hook([f"circuit_trace.{name}" for name in CHECKED], "tests.typecheck.checked")

import torch  # noqa: E402

# The models are tiny: handing work to a second thread costs more than the work.
torch.set_num_threads(1)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Switch the type checks off, which users do not have either, to see our own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
