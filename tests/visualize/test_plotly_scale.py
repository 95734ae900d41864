"""Plotly's scale of widths, where it can be checked by hand; `test_browser.py` has the rest."""

from __future__ import annotations

import pytest

from circuit_trace.visualize.layout import Flow
from circuit_trace.visualize.plotly_scale import padding_for, plotly_columns, plotly_scale

FORK = [Flow(0, 1, 2.0), Flow(0, 2, 1.0), Flow(1, 3, 2.0), Flow(0, 3, 4.0)]
"""Node 0 feeds 1, 2 and 3; 1 feeds 3; nothing leaves 2."""


def test_columns_are_by_longest_path_and_ends_stand_at_the_end() -> None:
    assert plotly_columns(4, FORK) == [(1, 7.0), (1, 2.0), (2, 7.0)]


def test_the_scale_fits_the_fullest_column() -> None:
    assert plotly_scale(4, FORK, 70.0) == 10.0
    assert plotly_scale(4, FORK, 70.0, 14.0) == (70 - 14) / 7


def test_plotly_takes_no_more_padding_than_two_thirds() -> None:
    assert plotly_scale(4, FORK, 70.0, 999.0) == pytest.approx(70 / 3 / 7)


@pytest.mark.parametrize(("wanted", "got"), [(8.0, 8.0), (20.0, 10.0), (1.0, 70 / 3 / 7)])
def test_padding_brings_the_scale_down_as_far_as_it_goes(wanted: float, got: float) -> None:
    pad = padding_for(4, FORK, 70.0, wanted)
    assert plotly_scale(4, FORK, 70.0, pad) == pytest.approx(got)


def test_padding_cannot_thin_a_chain_of_single_nodes() -> None:
    chain = [Flow(0, 1, 1.0), Flow(1, 2, 1.0)]
    assert padding_for(3, chain, 70.0, 2.0) == 0.0
    assert plotly_scale(3, chain, 70.0, 0.0) == 70.0
