"""trace → page: one file in which a person looks through a pass, edge by edge, without a network.

`data` says what the page knows, `page` puts it into `page.html`; there `layout.js` says where nodes
and links go, `diagram.js` has Plotly draw them, and `explorer.js` answers what a person does.
"""

from circuit_trace.visualize.explorer.explorer import Explorer as Explorer
from circuit_trace.visualize.explorer.explorer import explore as explore
