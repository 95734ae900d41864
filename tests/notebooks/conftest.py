"""A notebook that a real kernel has run, for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import plotly
import pytest

from tests.browser import REQUIRED

CELLS = {
    "import": """
        import sys
        sys.modules["ipywidgets"] = None  # as where it is not installed
        import circuit_trace as ct
        from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
        from circuit_trace.progress import tqdm

        model, pairs = ct.wrap(ct.load_model("bundled")), (CLEAN, CORRUPT, *ANSWERS)
        half = model.trace(CLEAN, corrupt=CORRUPT, edges={"A1.0->Resid End": 0.5})
        trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A1.0->Resid End", "A0.1->A1.0.Q"])
        scores = ct.score_edges(model, pairs)
        curve = ct.faithfulness(model, pairs, scores, sizes=(0.1, 0.3, 1.0))
    """,
    "last line": "ct.draw_seq_graph(model)",
    "not last": "ct.draw_seq_graph(model); 1 + 1;",
    "assigned": "figure = ct.draw_seq_graph(model)",
    "shown later": "figure",
    "assigned and named": "figure = ct.draw_seq_graph(model)\nfigure",
    "displayed": "display(ct.draw_seq_graph(model))",
    "changed": "ct.draw_seq_graph(model).update_layout(paper_bgcolor='ivory')",
    "two": "for orientation in 'hv':\n    ct.draw_seq_graph(model, orientation=orientation)",
    "not displayed": "figure = ct.draw_seq_graph(model, display_ipython=False)",
    "only returned": "ct.draw_seq_graph(model, display_ipython=False)",
    "difference": "ct.draw_difference(half, trace)",
    "curves": "ct.draw_faithfulness({'one': curve})",
    "curve drawn": "curve.draw()",
    "trace drawn": "trace.draw(table=True)",
    "trace": "trace",
    "diff": "half.diff(trace)",
    "curve": "curve",
    "scores": "scores",
    "bar": "for _ in tqdm(range(2)): pass",
    "explorer": "trace.explore()",
}
"""What is in each cell, by a name for it."""

FIGURES = {
    **dict.fromkeys(CELLS, 1),
    **{"changed": 2, "two": 2},
    **dict.fromkeys(("import", "not displayed", "scores", "bar", "explorer"), 0),
}
"""How many figures each cell shows."""


def tools_or_skip() -> None:
    """Skip a test where the tools for notebooks are not installed; fail in CI."""
    for name in ("ipykernel", "jupyterlab", "nbclient", "nbconvert"):
        if not os.environ.get(REQUIRED):
            pytest.importorskip(name)
        __import__(name)


@pytest.fixture(scope="package", autouse=True)
def jupyters_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Settings and runtime files of Jupyter's own in a folder that goes with the tests."""
    folder = tmp_path_factory.mktemp("jupyter")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    found = {name: str(folder / name.lower()) for name in names}
    # Where Plotly's extension of JupyterLab lies, also if that is another environment's folder.
    found["JUPYTER_PATH"] = str(Path(plotly.__file__).parents[4] / "share" / "jupyter")
    found["OMP_NUM_THREADS"] = "1"
    patch = pytest.MonkeyPatch()
    for name, value in found.items():
        patch.setenv(name, value)
    yield found
    patch.undo()


@pytest.fixture(scope="package")
def ran(jupyters_folders: Mapping[str, str]) -> Any:
    """The notebook with the outputs of its cells."""
    tools_or_skip()
    from textwrap import dedent

    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(dedent(source).strip()) for source in CELLS.values()]
    )
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return NotebookClient(notebook, timeout=120).execute()


@pytest.fixture(scope="package")
def outputs(ran: Any) -> dict[str, list[Any]]:
    """What each cell has shown, by the cell's name."""
    return {name: cell.outputs for name, cell in zip(CELLS, ran.cells, strict=True)}
