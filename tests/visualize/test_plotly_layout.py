"""The parts of Plotly's layout that can be checked by hand; `test_browser.py` has the rest."""

from __future__ import annotations

import pytest

from circuit_trace.visualize.plotly_layout import (
    Flow,
    node_values,
    plotly_columns,
    plotly_total,
    stack,
)

FORK = [Flow(0, 1, 2.0), Flow(0, 2, 1.0), Flow(1, 3, 2.0), Flow(0, 3, 4.0)]
"""Node 0 feeds 1, 2 and 3; 1 feeds 3; nothing leaves 2."""


def test_a_node_is_as_tall_as_the_larger_of_what_enters_and_leaves() -> None:
    assert node_values(4, FORK) == [7.0, 2.0, 1.0, 6.0]


def test_columns_are_by_longest_path_and_ends_stand_at_the_end() -> None:
    assert plotly_columns(4, FORK) == [[0], [1], [2, 3]]
    assert plotly_total(4, FORK) == 7.0


def test_the_scale_fits_the_fullest_column() -> None:
    assert stack(4, FORK, 70.0, 0.0).scale == 10.0
    assert stack(4, FORK, 70.0, 14.0).scale == pytest.approx(min(70 / 7, (70 - 14) / 7))


def test_links_are_stacked_as_their_far_ends_stand() -> None:
    stacking = stack(4, FORK, 70.0, 0.0)
    for node, links in enumerate(stacking.leaving):
        far = [stacking.centres[FORK[number].target] for number in links]
        assert sorted(links) == [n for n, flow in enumerate(FORK) if flow.source == node]
        assert far == sorted(far)
    for node, links in enumerate(stacking.entering):
        assert sorted(links) == [n for n, flow in enumerate(FORK) if flow.target == node]


def test_parallel_links_keep_their_order() -> None:
    stacking = stack(2, [Flow(0, 1, 1.0), Flow(0, 1, 2.0), Flow(0, 1, 1.0)], 40.0, 0.0)
    assert stacking.leaving[0] == stacking.entering[1] == (0, 1, 2)


def test_nothing_to_lay_out() -> None:
    assert plotly_total(0, []) == 0.0
    assert stack(0, [], 10.0, 0.0).centres == ()
