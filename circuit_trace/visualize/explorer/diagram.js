// The diagram: Plotly draws nodes and links, and the words are written over them.

const MOST_LABELS = 60;    // numbers written on links, where there is room
const MARGIN = 46;         // beside the first and the last node, for half their names
const COLUMN_STEP = 54;    // at least so much from one column to the next
const LABEL_PLACES = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74];

/** A panel as a Sankey of Plotly. */
function sankey(panel, height, width, step) {
  const fraction = y => 1 - y / height;
  return {
    type: "sankey",
    arrangement: "fixed",
    domain: { x: [0, 1], y: [fraction(panel.domain + panel.total), fraction(panel.domain)] },
    node: {
      label: panel.nodes.map(node => escapeForPlotly(nodes[node.id].name)),
      color: panel.nodes.map(node => look.nodes[nodes[node.id].kind]),
      // Plotly ignores a place of exactly 0.
      x: panel.nodes.map(node => (THICKNESS / 2 + node.column * step) / width || 1e-4),
      y: panel.nodes.map(node => (panel.top + middle(node) - panel.domain) / panel.total || 1e-4),
      pad: 0,
      thickness: THICKNESS,
      line: { width: 0 },
      hovertemplate: "%{label}<extra></extra>",
    },
    link: {
      source: panel.links.map(link => link.source),
      target: panel.links.map(link => link.target),
      value: panel.links.map(link => link.width),
      label: panel.links.map(link => escapeForPlotly(describe(link.edge))),
      color: panel.links.map(link => seeThrough(colorOf(link.edge))),
      sort: "input",
      hovertemplate: "%{label}<extra></extra>",
    },
    textfont: { size: 1, color: "rgba(0, 0, 0, 0)" }, // names are written above nodes instead
  };
}

let drawnLast = 0;

async function draw(drawn) {
  const ours = ++drawnLast;
  const groups = positions
    .map((_, index) => ({
      position: index,
      name: positionName(index),
      links: drawn
        .filter(edge => edges.position[edge] === index)
        .sort((a, b) => a - b)
        .map(edge => ({
          edge, source: edges.source[edge], target: edges.target[edge], size: sizeOf(edge),
        })),
    }))
    .filter(group => group.links.length);
  const { height, columns, panels } = layOut(groups, nodes);
  $("canvas").hidden = !panels.length;
  if (!panels.length) return;
  const gaps = Math.max(columns - 1, 1);
  const width = Math.max($("diagram").clientWidth - 2 * MARGIN, COLUMN_STEP * gaps);
  const step = (width - THICKNESS) / gaps;
  // Keeps what is scrolled in its place while the plot is made anew.
  $("canvas").style.cssText = `width: ${width + 2 * MARGIN}px; height: ${height + 8}px`;
  // Not Plotly.react: it would move links for half a second, and leave those that go in the
  // document and in the tab order so long.
  await Plotly.newPlot(
    "plot",
    panels.map(panel => sankey(panel, height, width, step)),
    {
      width: width + 2 * MARGIN,
      height: height + 8,
      margin: { l: MARGIN, r: MARGIN, t: 0, b: 8 },
      paper_bgcolor: "rgba(0, 0, 0, 0)",
      template: {},
      hoverlabel: { align: "left", font: { family: "monospace" } },
      xaxis: { visible: false },
      yaxis: { visible: false },
    },
    { displayModeBar: false, doubleClick: false, responsive: false },
  );
  if (ours !== drawnLast) return;
  markUp(panels);
  writeWords(panels, drawn.slice(0, MOST_LABELS));
}

/** Make nodes and links buttons that a keyboard reaches, and say what each is. */
function markUp(panels) {
  document.querySelectorAll("#plot g.sankey").forEach((group, index) => {
    const panel = panels[index];
    const asButton = (element, key, label) => {
      element.setAttribute("tabindex", "0");
      element.setAttribute("role", "button");
      element.setAttribute("data-key", key);
      element.setAttribute("aria-label", label);
    };
    for (const link of group.querySelectorAll(".sankey-link")) {
      const { edge } = panel.links[link.__data__.link.pointNumber];
      asButton(link, `edge-${edge}`, describe(edge));
      link.style.color = colorOf(edge); // the style sheet draws its outline
    }
    for (const node of group.querySelectorAll(".sankey-node")) {
      const { id } = panel.nodes[node.__data__.node.pointNumber];
      const label = [nodes[id].name, panel.name, "show only its edges"].filter(Boolean).join(", ");
      asButton(node, `node-${id}-${index}`, label);
    }
  });
}

/** Write titles, the names of nodes and the numbers on links over what Plotly drew. */
function writeWords(panels, labelled) {
  const words = $("words");
  words.replaceChildren();
  const write = (kind, text, x, y) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "text");
    Object.entries({ class: kind, x, y }).forEach(([key, value]) => element.setAttribute(key, value));
    element.textContent = text;
    words.append(element);
  };
  document.querySelectorAll("#plot g.sankey").forEach((group, index) => {
    const panel = panels[index];
    const { graph, translateX, translateY } = group.__data__;
    if (panel.title) {
      const { seq_idx, token } = positions[panel.position];
      write("title", `${token ?? ""} (position ${seq_idx})`.trim(), 16, panel.top - 10);
    }
    const taken = [];
    for (const node of graph.nodes) {
      const name = nodes[panel.nodes[node.pointNumber].id].name;
      const [x, y, height] = [(node.x0 + node.x1) / 2, node.y0, node.y1 - node.y0];
      write("name", name, translateX + x, translateY + y - 5);
      taken.push({ x, y: y - 9, width: 7 * name.length, height: 14 });
      taken.push({ x, y: y + height / 2, width: THICKNESS, height });
    }
    const links = new Map(graph.links.map(link => [panel.links[link.pointNumber].edge, link]));
    for (const edge of labelled.filter(edge => links.has(edge))) {
      const text = number(edges[state.quantity][edge]);
      const size = { width: 6.5 * text.length, height: 12 };
      const spots = LABEL_PLACES.map(share => ({ ...onLink(links.get(edge), share), ...size }));
      const spot = firstFree(spots, taken);
      if (!spot) continue;
      taken.push(spot);
      write("number", text, translateX + spot.x, translateY + spot.y + 4);
    }
  });
}
