"""Where labels go on links, in pixels of one panel: where they cover least of what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from circuit_trace.visualize.layout import NODE_THICKNESS, Box, Flow, Placed, Point

LABEL_PLACES = (0.5, 0.46, 0.54, 0.42, 0.58, 0.38, 0.62, 0.34, 0.66, 0.3, 0.7, 0.26, 0.74)
"""Where on its link a label is tried, from the middle outwards."""
LABEL_ROUNDS = 6
NODE_WEIGHT = 3
"""A label on a node or a name is so much worse than one on another label."""

Boxes = Any
"""An array of boxes, `[..., 4]`: centres along and across, and extents."""


def place_labels(
    placed: Placed, flows: Sequence[Flow], sizes: dict[int, Point], names: Sequence[Box]
) -> dict[int, Point]:
    """The centres of labels on links, which are given by their numbers with the labels' extents.

    The first round puts each label beside those before it, the next ones beside all others.
    """
    if not sizes:
        return {}
    boxes = np.array([_tried(placed, flows, *one) for one in sizes.items()])
    fixed = np.array([_row(box) for box in (*placed.nodes, *names)])
    on_fixed = NODE_WEIGHT * _overlaps(boxes[:, :, None], fixed).sum(-1)
    chosen: list[Boxes] = []
    for _ in range(LABEL_ROUNDS):
        before = list(chosen)
        for at, tried in enumerate(boxes):
            others = np.array(chosen[:at] + chosen[at + 1 :]).reshape(-1, 4)
            covered = on_fixed[at] + _overlaps(tried[:, None], others).sum(-1)
            chosen[at : at + 1] = [tried[int(covered.round().argmin())]]
        if len(before) == len(chosen) and np.array_equal(before, chosen):
            break
    return {
        link: (float(along), float(across))
        for link, (along, across, *_) in zip(sizes, chosen, strict=True)
    }


def _tried(placed: Placed, flows: Sequence[Flow], link: int, size: Point) -> list[list[float]]:
    """The boxes where a label is tried: on the cubic that Plotly draws, level at both ends."""
    flow, ends = flows[link], placed.ends[link]
    start = placed.nodes[flow.source].along + NODE_THICKNESS / 2
    end = placed.nodes[flow.target].along - NODE_THICKNESS / 2
    return [
        [
            start + (t**3 - 1.5 * t**2 + 1.5 * t) * (end - start),
            ends[0] + (3 - 2 * t) * t**2 * (ends[1] - ends[0]),
            *size,
        ]
        for t in LABEL_PLACES
    ]


def _row(box: Box) -> list[float]:
    return [box.along, box.across, box.length, box.breadth]


def _overlaps(ones: Boxes, others: Boxes) -> Any:
    """The areas that boxes share with others."""
    shared = (ones[..., 2:] + others[..., 2:]) / 2 - abs(ones[..., :2] - others[..., :2])
    return shared.clip(0).prod(-1)
