"""Pictures of a real model's circuit: thirty layers wide, and still legible."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import pytest
import torch

import circuit_trace as ct
from circuit_trace.visualize.panels import build_diagram
from circuit_trace.visualize.picture import live_picture
from circuit_trace.visualize.style import Style
from circuit_trace.visualize.view import View
from tests.real.tasks import IOI
from tests.visualize.pictures import node_rects
from tests.visualize.test_layout import check_labels_on_links, label_rects, name_rects


@pytest.fixture(scope="module")
def trace(model: ct.PatchableModel) -> ct.Trace:
    """A pass with forty connected edges patched, which chance chose."""
    chance = torch.Generator().manual_seed(0)
    scores = {one.name: torch.randn(one.shape, generator=chance) for one in model.graph.modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the strongest by chance are not connected
        circuit = ct.circuit(scores, n_edges=40, model=model)
    return model.trace(IOI.clean, corrupt=IOI.corrupt, masks=circuit)


@pytest.mark.parametrize("orientation", ["h", "v"])
def test_forty_edges_have_their_labels_on_them_and_no_two_lie_on_each_other(
    trace: ct.Trace, orientation: Any
) -> None:
    style = Style(orientation=orientation)
    diagram = build_diagram(live_picture(View.of(trace), style, None, has_table=False), style)
    (panel,) = diagram.panels
    assert len([link for link in panel.links if link.short_at is not None]) == 40
    check_labels_on_links(diagram, panel)
    for rects in (
        node_rects(diagram, panel),
        name_rects(diagram, panel),
        label_rects(diagram, panel),
    ):
        for one, other in combinations(rects, 2):
            assert not one.overlaps(other, slack=1.0)
