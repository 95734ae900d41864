// Where the diagrams stand, in pixels. A link is as wide as its number, in one scale for all
// panels; Plotly takes that scale from a domain as high as the fullest column of its own layout.

const THICKNESS = 12;      // of a node, along the flow
const NAME_ROOM = 22;      // above a node, for its name
const DENSE_ROOM = 24;     // more of it at most, where many links cross between nodes
const PASSING_GAP = 6;     // between a node and a link that passes its column
const MOST_PASSING = 80;   // up to so many links of a panel get room of their own in passing
const WIDEST = 28;         // the widest link
const FULLEST = 320;       // all links of a column side by side; then they become thinner
const THINNEST = 1.5;      // a link of 0 is still seen
const TITLE_ROOM = 30;     // above a panel, for its token
const SWEEPS = 16;         // rounds in which nodes move towards their neighbours

const sum = numbers => numbers.reduce((total, one) => total + one, 0);
const most = numbers => numbers.reduce((largest, one) => Math.max(largest, one), 0);

/**
 * Lay panels out one above the other.
 * @param groups [{position, name, links: [{edge, source, target, size}]}], ends as indices to nodes
 * @param nodes [{depth}] of the whole page
 * @returns {height, columns, panels: [{position, name, title, nodes, links, top, domain, total}]}
 */
function layOut(groups, nodes) {
  const ends = groups.flatMap(group => group.links.flatMap(link => [link.source, link.target]));
  const depths = [...new Set(ends.map(end => nodes[end].depth))].sort((a, b) => a - b);
  const panels = groups.map(group => newPanel(group, nodes, depths));
  const widest = most(panels.flatMap(panel => panel.links.map(link => link.size)));
  const fullest = most(panels.map(panel => most(columnTotals(panel, link => link.size))));
  const scale = widest ? Math.min(WIDEST / widest, FULLEST / fullest) : 0;
  let top = 0;
  for (const panel of panels) {
    for (const link of panel.links) link.width = Math.max(link.size * scale, THINNEST);
    panel.title = panel.name ? TITLE_ROOM : 0;
    panel.top = top + panel.title;
    panel.total = most(columnTotals(panel, link => link.width, plotlyColumns(panel)));
    top = panel.top + place(panel, depths.length) + PASSING_GAP * 2;
  }
  const height = Math.max(top, ...panels.map(panel => panel.total));
  for (const panel of panels) panel.domain = Math.min(panel.top, height - panel.total);
  return { height, columns: depths.length, panels };
}

/** A panel's own nodes, in the order of the flow, and its links between them. */
function newPanel(group, nodes, depths) {
  const used = [...new Set(group.links.flatMap(link => [link.source, link.target]))];
  used.sort((a, b) => a - b);
  const place = new Map(used.map((id, index) => [id, index]));
  return {
    ...group,
    nodes: used.map(id => ({ id, column: depths.indexOf(nodes[id].depth) })),
    links: group.links.map(link => ({
      ...link, source: place.get(link.source), target: place.get(link.target),
    })),
  };
}

/** What the nodes of each column take: a node is as high as what flows in, or out if more. */
function columnTotals(panel, sizeOf, columns = panel.nodes.map(node => node.column)) {
  const totals = [];
  nodeSizes(panel, sizeOf).forEach((size, index) => {
    totals[columns[index]] = (totals[columns[index]] ?? 0) + size;
  });
  return totals.filter(total => total !== undefined);
}

function nodeSizes(panel, sizeOf) {
  const into = panel.nodes.map(() => 0), out = panel.nodes.map(() => 0);
  for (const link of panel.links) {
    out[link.source] += sizeOf(link);
    into[link.target] += sizeOf(link);
  }
  return into.map((size, index) => Math.max(size, out[index]));
}

/** Plotly's own columns: by longest path, nodes that nothing leaves at the end. */
function plotlyColumns(panel) {
  const depth = panel.nodes.map(() => 0), leaves = new Set();
  for (const link of [...panel.links].sort((a, b) => a.source - b.source)) {
    depth[link.target] = Math.max(depth[link.target], depth[link.source] + 1);
    leaves.add(link.source);
  }
  return depth.map((own, index) => (leaves.has(index) ? own : most(depth)));
}

/** Give a panel's nodes their places across the flow, and its links their order; how high it is. */
function place(panel, columnCount) {
  const sizes = nodeSizes(panel, link => link.width);
  const gap = NAME_ROOM + Math.min(panel.links.length / 8, DENSE_ROOM);
  const items = panel.nodes.map((node, index) =>
    Object.assign(node, { height: sizes[index], gap, near: [] }));
  for (const link of panel.links) joinNeighbours(items, link, panel.links.length <= MOST_PASSING);
  const columns = Array.from({ length: columnCount }, (_, column) =>
    items.filter(item => item.column === column));
  const room = most(columns.map(column => sum(column.map(item => item.height + item.gap))));
  for (const column of columns) {
    for (const item of column) item.wanted = room / 2;
    settle(column, room);
  }
  for (let round = 0; round < SWEEPS; round++) {
    for (const column of round % 2 ? columns : [...columns].reverse()) {
      for (const item of column) {
        const weight = sum(item.near.map(([, width]) => width));
        item.wanted = sum(item.near.map(([other, width]) => middle(other) * width)) / weight;
      }
      column.sort((a, b) => a.wanted - b.wanted);
      settle(column, room);
    }
  }
  const first = Math.min(...items.map(item => item.top - item.gap));
  for (const item of items) item.top -= first;
  // Links of one node stacked as their far ends stand do not cross there.
  const across = link => middle(panel.nodes[link.source]) + middle(panel.nodes[link.target]);
  panel.links.sort((a, b) => across(a) - across(b) || a.edge - b.edge);
  return most(items.map(item => item.top + item.height));
}

const middle = item => item.top + item.height / 2;

/** Make the ends of a link neighbours, by way of the columns that it passes if these get room. */
function joinNeighbours(items, link, hasRoom) {
  const chain = [items[link.source]], end = items[link.target];
  for (let column = chain[0].column + 1; hasRoom && column < end.column; column++) {
    const passing = { column, height: link.width, gap: PASSING_GAP, near: [] };
    items.push(passing);
    chain.push(passing);
  }
  chain.push(end);
  for (let at = 1; at < chain.length; at++) {
    chain[at].near.push([chain[at - 1], link.width]);
    chain[at - 1].near.push([chain[at], link.width]);
  }
}

/** Put the items of a column where they want to be, in their order and one below the other. */
function settle(column, room) {
  let floor = 0, ceiling = room;
  for (const item of column) {
    item.top = Math.max(item.wanted - item.height / 2, floor + item.gap);
    floor = item.top + item.height;
  }
  for (const item of [...column].reverse()) {
    item.top = Math.min(item.top, ceiling - item.height);
    ceiling = item.top - item.gap;
  }
}

/** A point on the middle of a link as Plotly draws it: a cubic that is level at both ends. */
function onLink(link, share) {
  const rest = 1 - share, bent = 3 * rest * share;
  const x0 = link.source.x1, x1 = link.target.x0;
  return {
    x: rest ** 3 * x0 + bent * (x0 + x1) / 2 + share ** 3 * x1,
    y: (rest ** 3 + bent * rest) * link.y0 + (share ** 3 + bent * share) * link.y1,
  };
}

/** The first of some boxes {x, y, width, height} (x, y: centre) that covers nothing, if any. */
function firstFree(boxes, taken) {
  return boxes.find(box => !taken.some(other =>
    Math.abs(box.x - other.x) < (box.width + other.width) / 2 &&
    Math.abs(box.y - other.y) < (box.height + other.height) / 2));
}
