"""What a notebook makes of a figure: shown once where it is drawn, with a picture that stays."""

from __future__ import annotations

import sys
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import ExternalRenderer

from circuit_trace.visualize.still import still

PLOTLY = "application/vnd.plotly.v1+json"
"""What JupyterLab and VS Code draw with a Plotly of their own. nbconvert's pages, GitHub and a
JupyterLab without Plotly's extension do not know it."""


class Figure(go.Figure):
    """A Plotly figure that a notebook shows once, and as a picture where there is no Plotly.

    A figure that was shown while it was drawn is not shown again by the cell that drew it, though it
    be the cell's last line; unless it was changed since. Any other cell shows it.
    """

    _shown: tuple[int, str] | None = None
    """The cell that has shown it, by its number, and what it looked like then."""

    def show_now(self) -> None:
        """Show this figure in the cell that runs, and not again as that cell's value."""
        self._ipython_display_()
        self._shown = self._now()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        shown, self._shown = self._shown, None
        if shown is not None and shown == self._now():
            return
        bundle = self._repr_mimebundle_()
        names = filter(None, (pio.renderers.default or "").split("+"))
        if bundle and not any(isinstance(pio.renderers[n], ExternalRenderer) for n in names):
            display(bundle, raw=True)
        else:
            super()._ipython_display_()  # IPython in a terminal opens a browser

    def _now(self) -> tuple[int, str] | None:
        from IPython import get_ipython

        cell = getattr(get_ipython(), "execution_count", None)
        return None if cell is None else (cell, str(self.to_json()))

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None, validate: bool = True, **options: Any
    ) -> dict[str, Any]:
        """What Plotly has chosen for this notebook; beside what Plotly alone can show, a picture."""
        bundle = super()._repr_mimebundle_(include, exclude, validate, **options) or {}
        picture = still(self) if bundle.keys() == {PLOTLY} else None
        if picture is None:
            return bundle
        name = f"<Figure: {self.layout['width']} × {self.layout['height']} pixels>"
        return {**bundle, "image/svg+xml": picture, "text/plain": name}


def show_in_ipython(figure: Figure) -> None:
    """Display the figure in a running IPython; a plain script shows nothing and opens nothing."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        figure.show_now()
