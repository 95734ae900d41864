"""trace → picture → diagram → figure: edges are chosen and labelled, laid out in pixels, then rendered.

`style` and `view` read what is asked for, `source` what it is asked of; `edges`, `caption` and
`companion` say what a `picture` shows, `layout`, `labels` and `panels` where it stands in a `diagram`;
`sankey` draws that with Plotly, `write` saves it; `draw` and `difference` do all of it. `faithfulness`
draws curves instead.
"""

from circuit_trace.visualize.difference import draw_difference as draw_difference
from circuit_trace.visualize.draw import draw_seq_graph as draw_seq_graph
from circuit_trace.visualize.draw import net_viz as net_viz
from circuit_trace.visualize.explorer import explore as explore
from circuit_trace.visualize.faithfulness import draw_faithfulness as draw_faithfulness
