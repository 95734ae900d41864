"""Shared fixtures; shapes in type annotations are checked while the tests run."""

import os
from collections.abc import Iterator
from pathlib import Path

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

HERE = Path(__file__).parent

FAST = (
    "anatomy/test_find", "anatomy/test_places",
    "graph/test_edges", "graph/test_grammar", "graph/test_shared",
    "hooks/test_attach", "hooks/test_record", "hooks/test_scope",
    "integrations/test_acdc", "integrations/test_edge_pruning", "integrations/test_groups",
    "integrations/test_mermaid", "integrations/test_prune_scores",
    "plan/test_masks", "plan/test_plan",
    "score/test_metrics", "score/test_reach", "score/test_circuit",
    "trace/test_about", "trace/test_heads",
    "visualize/test_graph_text", "visualize/test_layout", "visualize/test_sankey",
    "visualize/test_spec", "visualize/test_terminal", "visualize/test_text",
    "test_cli::test_circuit_prints_and_writes_the_strongest", "test_cli::test_convert_there_and_back",
    "test_cli::test_errors_speak_the_language_of_the_shell", "test_cli::test_show_a_trace",
    "test_files", "test_house", "test_warn",
)  # fmt: skip
"""What `pytest -m fast` runs: files, or tests of a file, that take little time and touch every room."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `-m fast` leaves out."""
    if config.getoption("markexpr") != "fast" or not collection_path.name.startswith("test_"):
        return None
    return _place(collection_path) not in {one.partition("::")[0] for one in FAST} or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is fast."""
    for item in items:
        place = _place(item.path)
        if {place, f"{place}::{item.name.partition('[')[0]}"} & set(FAST):
            item.add_marker(pytest.mark.fast)


def _place(path: Path) -> str:
    return os.path.relpath(path.with_suffix(""), HERE)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Switch the type checks off, which users do not have either, to see our own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
