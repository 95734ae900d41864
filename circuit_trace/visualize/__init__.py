"""trace → figure: edges are chosen and labelled, laid out as a specification, then rendered.

`options` reads what is asked for, `edges`, `companion` and `text` say what is shown, `layout` and
`spec` where, `sankey` draws it with Plotly, `write` saves it; `draw` and `difference` do all of it.
`faithfulness` draws curves instead.
"""

from circuit_trace.visualize.difference import draw_difference as draw_difference
from circuit_trace.visualize.draw import draw_seq_graph as draw_seq_graph
from circuit_trace.visualize.draw import net_viz as net_viz
from circuit_trace.visualize.explorer import explore as explore
from circuit_trace.visualize.faithfulness import draw_faithfulness as draw_faithfulness
