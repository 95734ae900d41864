"""Curve over the size of the circuit, as a Plotly figure: one curve, or several to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go

from circuit_trace.errors import FigureError, InputError
from circuit_trace.record.curve import Curve
from circuit_trace.visualize.colors import Theme, ThemeName, rgba, theme_named
from circuit_trace.visualize.notebook import Figure, show_in_ipython
from circuit_trace.visualize.sankey import FONT
from circuit_trace.visualize.style import check_size
from circuit_trace.visualize.text import escape
from circuit_trace.visualize.write import File, write

PALETTES = {
    "light": (
        "#0072B2",
        "#D55E00",
        "#009E73",
        "#CC79A7",
        "#A6761D",
        "#56B4E9",
        "#6A4C93",
        "#222222",
    ),
    "dark": (
        "#56B4E9",
        "#FF8A4C",
        "#2BC495",
        "#E79AC3",
        "#D9B44A",
        "#4C9BFF",
        "#B79BE0",
        "#E8E8E8",
    ),
}
"""Colours that are apart to colour-blind eyes too (after Okabe and Ito), in the order of the curves."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
"""So that curves are told apart in black and white."""
BAND_ALPHA = 0.18
TEXT_SIZE, SMALL_SIZE = 14, 12
TICKS = tuple(10**power * digit for power in range(9) for digit in (1, 2, 5))
MOST_TICKS = 12
LINE_HEIGHT = 20


def draw_faithfulness(
    curves: Curve | Mapping[str, Curve],
    *,
    log: bool = True,
    size: tuple[float, float] = (620, 400),
    theme: ThemeName = "light",
    display_ipython: bool = True,
    file_path: str | Path | None = None,
    include_plotlyjs: bool | Literal["cdn"] = True,
    page_width: float | None = None,
) -> go.Figure:
    """Draw faithfulness over the number of edges in the circuit, with its standard error over prompts.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model, pairs = ct.wrap(ct.load_model("bundled")), (CLEAN, CORRUPT, *ANSWERS)
    >>> scores = ct.exact_scores(model, pairs)
    >>> curves = {c: ct.faithfulness(model, pairs, scores, circuit=c) for c in ("top", "greedy")}
    >>> drawn = ct.draw_faithfulness(curves)
    >>> [trace.name for trace in drawn.data if trace.showlegend]
    ['top (CPR 0.67, CMD 0.32)', 'greedy (CPR 0.67, CMD 0.32)']

    Args:
        curves: What `ct.faithfulness` returned, or a mapping from names to several of them. A circuit
            without edges is no point of a curve.
        log: Show sizes on a logarithmic scale.
        size: Width and height in pixels.
        theme: "light" or "dark".
        display_ipython: Show the figure if this runs inside IPython.
        file_path: Write the figure too: .html, .json, .png, .svg, .pdf, .jpg or .webp.
        include_plotlyjs: As in `draw_seq_graph`.
        page_width: As in `draw_seq_graph`.

    Raises:
        FigureError: There is nothing to draw, an option is out of range, or the file cannot be
            written.
    """
    file = File.asked_for(file_path, include_plotlyjs, page_width)
    colors = theme_named(theme)
    check_size(size)
    named = {"": curves} if isinstance(curves, Curve) else curves
    _check(named)
    figure = Figure(layout=_layout(named, colors, size, log))
    for place, (name, curve) in enumerate(named.items()):
        color, symbol = (all_[place % len(all_)] for all_ in (PALETTES[theme], SYMBOLS))
        figure.add_traces(_curve(name, curve, color, symbol))
    if display_ipython:
        show_in_ipython(figure)
    if file is not None:
        write(figure, None, file)
    return figure


def _check(curves: Any) -> None:
    if (
        not isinstance(curves, Mapping)
        or not curves
        or not all(isinstance(one, Curve) for one in curves.values())
    ):
        raise FigureError(
            "Expected what ct.faithfulness returned, or a mapping from names to several of these; got "
            f"{type(curves).__name__}."
        )
    if len({curve.patch for curve in curves.values()}) > 1:
        raise FigureError(
            "Some of the curves keep their circuits (patch='complement') and some patch them "
            "(patch='circuit'): these go in figures of their own."
        )
    for name, curve in curves.items():
        if not any(curve.n_edges):
            which = f" {name!r}" if name else ""
            raise FigureError(
                f"All circuits of the curve{which} are empty, so there is nothing to draw: measure "
                "larger sizes."
            )
        try:
            _ = curve.faithfulness
        except InputError as error:
            raise FigureError(str(error)) from error


def _curve(name: str, curve: Curve, color: str, symbol: str) -> tuple[go.Scatter, go.Scatter]:
    """The band of the standard error and the line on it."""
    errors = (curve.standard_error / abs(curve.span)).nan_to_num(0).tolist()
    heights, means = curve.faithfulness.tolist(), curve.mean.tolist()
    rows = zip(curve.n_edges, heights, errors, means, strict=True)
    points = [point for point in dict.fromkeys(rows) if point[0]]
    x = [point[0] for point in points]
    band = go.Scatter(
        x=[*x, *reversed(x)],
        y=[p[1] + p[2] for p in points] + [p[1] - p[2] for p in reversed(points)],
        fill="toself",
        fillcolor=rgba(color, BAND_ALPHA),
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    line = go.Scatter(
        x=x,
        y=[point[1] for point in points],
        customdata=[[n / curve.n_all, mean, error] for n, _, error, mean in points],
        mode="lines+markers",
        name=_with_areas(name, curve),
        showlegend=True,
        line={"color": color, "width": 2},
        marker={"color": color, "size": 7, "symbol": symbol},
        hovertemplate=(
            "%{x:,} edges, %{customdata[0]:.3~%} of all<br>faithfulness %{y:.3f} ± "
            f"%{{customdata[2]:.3f}}<br>{escape(curve.metric)} %{{customdata[1]:.4g}}<extra></extra>"
        ),
    )
    return band, line


def _with_areas(name: str, curve: Curve) -> str:
    """The curve's name in the legend, with its areas where they are those of all sizes."""
    if curve.patch != "complement" or len(curve.fractions) < 2 or curve.fractions[-1] < 1:
        return escape(name)
    areas = f"CPR {curve.cpr:.2f}, CMD {curve.cmd:.2f}"
    return f"{escape(name)} ({areas})" if name else areas


def _layout(
    curves: Mapping[str, Curve], theme: Theme, size: tuple[float, float], log: bool
) -> go.Layout:
    line = {"showgrid": False, "zeroline": False, "showline": True, "linecolor": theme.ink}
    ticks = {"ticks": "outside", "tickcolor": theme.ink}
    first = next(iter(curves.values()))
    what = "circuit" if first.patch == "complement" else "patched circuit"
    has_legend = any(_with_areas(name, curve) for name, curve in curves.items())
    sizes = [n for curve in curves.values() for n in curve.n_edges if n]
    x_axis: dict[str, Any] = {
        **line,
        **ticks,
        "title": _title(f"edges in the {what}, of {_all_edges(curves)}"),
        "tickformat": ",d",
    }
    if log:
        shown = [tick for tick in TICKS if min(sizes) <= tick <= max(sizes)]
        if len(shown) > MOST_TICKS:
            shown = [tick for tick in shown if str(tick).startswith("1")]
        low, high = math.log10(min(sizes)), math.log10(max(sizes))
        room = max(0.05, 0.03 * (high - low))
        x_axis.update(type="log", tickvals=shown, range=[low - room, high + room])
    return go.Layout(
        template=go.layout.Template(),
        width=round(size[0]),
        height=round(size[1]),
        margin={"l": 70, "r": 20, "t": 24 + LINE_HEIGHT * len(curves) * has_legend, "b": 56},
        paper_bgcolor=theme.paper,
        plot_bgcolor=theme.paper,
        font={"family": FONT, "size": SMALL_SIZE, "color": theme.ink},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": SMALL_SIZE}},
        xaxis=x_axis,
        yaxis={**line, **ticks, "title": _title(f"faithfulness ({_metrics(curves)})")},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "entrywidth": 1,
            "entrywidthmode": "fraction",
            "font": {"size": SMALL_SIZE},
        },
        showlegend=has_legend,
        shapes=[_level(1, theme), _level(0, theme)],
    )


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": TEXT_SIZE}, "standoff": 10}


def _level(height: float, theme: Theme) -> dict[str, Any]:
    """A dashed line where the clean or the corrupt prompts are."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "layer": "below",
        "line": {"color": theme.ink, "width": 1, "dash": "dash"},
    }


def _all_edges(curves: Mapping[str, Curve]) -> str:
    numbers = {curve.n_all for curve in curves.values()}
    return f"{numbers.pop():,}" if len(numbers) == 1 else "all"


def _metrics(curves: Mapping[str, Curve]) -> str:
    names = dict.fromkeys(curve.metric for curve in curves.values())
    return escape(", ".join(name.replace("_", " ") for name in names))
