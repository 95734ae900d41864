"""figure → SVG: what a notebook keeps of a picture for those who cannot run Plotly.

nbconvert's pages, GitHub and a JupyterLab without Plotly's extension show pictures and no Plotly. This
draws the figures that this library makes, without a browser; `frame` puts the parts together, `words`
writes their text, and `diagram`, `table` and `curves` draw what is in them.
"""

from circuit_trace.visualize.still.frame import still as still
