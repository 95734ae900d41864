// What a person sees and does. `state` is all that changes; `update` shows it.

const MOST_LINKS = 300;    // in the diagram at once
const MOST_ROWS = 500;     // in the list
const SLIDER_STEPS = 1000;

const spec = JSON.parse(document.getElementById("data").textContent);
const { edges, nodes, positions, look } = spec;
const quantityNames = new Map(spec.quantities);
const state = {
  quantity: spec.opens_with,
  threshold: 0,
  positions: new Set(positions.keys()),
  query: "",
  node: null,
  edge: null,
};

const $ = id => document.getElementById(id);

/** An element with attributes and children; strings become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Words

const count = value => value.toLocaleString("en-US");
const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Three significant digits, or all those before the point. */
function number(value) {
  if (value === null) return "—";
  const size = Math.abs(value);
  return size >= 1000 && size < 1e5 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

/** Plotly reads tags and entities in its labels. */
const escapeForPlotly = text =>
  text.replace(/[&<>$]/g, char => `&#${char.charCodeAt(0)};`);

function positionName(index) {
  const { seq_idx, token } = positions[index];
  if (seq_idx === null) return "";
  return token === null ? `position ${seq_idx}` : `${token} @${seq_idx}`;
}

function edgeTitle(edge) {
  return [edges.name[edge], positionName(edges.position[edge])].filter(Boolean).join(", ");
}

function describe(edge) {
  return `${edgeTitle(edge)}: ${quantityNames.get(state.quantity)} ` +
    number(edges[state.quantity][edge]);
}

// Which edges

const sizeOf = edge => Math.abs(edges[state.quantity][edge]);
const largest = () => most(edges[state.quantity].map(value => Math.abs(value)));

/** The edges that pass every filter, strongest first. */
function shownEdges() {
  const query = state.query.trim().toLowerCase();
  return [...edges.name.keys()]
    .filter(edge =>
      edges[state.quantity][edge] !== null &&
      sizeOf(edge) >= state.threshold &&
      state.positions.has(edges.position[edge]) &&
      edges.name[edge].toLowerCase().includes(query) &&
      (state.node === null || [edges.source[edge], edges.target[edge]].includes(state.node)))
    .sort((a, b) => sizeOf(b) - sizeOf(a) || a - b);
}

// Colours

const isSigned = () => state.quantity === "score" || state.quantity === "projection";
const linkLegend = () => look.legends[isSigned() ? state.quantity : "mask"];

function colorOf(edge) {
  const value = edges[isSigned() ? state.quantity : "mask"][edge];
  const rank = isSigned() ? (value > 0 ? 0 : value < 0 ? 1 : 2) : value === 1 ? 0 : value ? 1 : 2;
  return linkLegend()[rank][0];
}

function seeThrough(color) {
  const parts = [1, 3, 5].map(at => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${parts.join(", ")}, ${look.link_alpha})`;
}

// The list, the chosen edge, and the words around them

function list(listed) {
  const widest = largest() || 1;
  $("list").replaceChildren(...listed.map(edge => {
    const row = make("button", { type: "button", "data-key": `row-${edge}` },
      make("span", { class: "swatch", style: `background: ${colorOf(edge)}` }),
      make("span", { class: "edge" }, edges.name[edge]),
      make("span", { class: "token" }, positionName(edges.position[edge])),
      make("span", { class: "value" }, number(edges[state.quantity][edge])));
    row.style.setProperty("--share", `${100 * sizeOf(edge) / widest}%`);
    return make("li", {}, row);
  }));
}

const vector = values =>
  `[${values.map(number).join(", ")}${values.length < spec.d_model ? ", …" : ""}]`;
const tokens = pairs => pairs.length === 0 ? "nothing: no logit changes" :
  make("ul", { class: "tokens" }, ...pairs.map(([token, by]) =>
    make("li", {}, make("bdi", {}, token), ` ${number(by)}`)));
const fromTo = (before, after) =>
  before === undefined ? number(after) : `${number(before)} → ${number(after)}`;
const compared = spec.compared === null ? "" : `, ${spec.compared.join(" → ")}`;

/** What is said of an edge: names, the columns they need, and how they are written. */
const FACTS = [
  ["mask", "mask", number],
  ["‖clean‖", "clean", number],
  ["‖current‖", "current", number],
  ["‖patched‖", "patched", number],
  ["‖received‖", "received", number],
  ["‖received − clean‖", "effect", number],
  ["‖patched − current‖", "delta", number],
  [`cosine${compared}`, "cosine", number],
  ["score", "score", number],
  [`projection${compared}`, "after_projection", (after, edge) =>
    fromTo(edges.before_projection?.[edge], after)],
  ...["clean", "current", "patched", "received"].map(name => [name, `${name}_values`, vector]),
  ["promotes", "promotes", tokens],
  ["suppresses", "suppresses", tokens],
];

/** Where an edge's numbers are taken: its position, or one of an edge that has all. */
function placeOf(edge) {
  const { seq_idx, token } = positions[edges.position[edge]];
  if (seq_idx !== null) {
    return [`Position ${seq_idx}`, ...(token === null ? [] : [", token ", make("bdi", {}, token)])];
  }
  const at = edges.at[edge], atToken = edges.at_token?.[edge] ?? null;
  if (at === null) return ["All positions; the numbers are those of each prompt's last."];
  return [`All positions; the numbers are those of position ${at}`,
    ...(atToken === null ? [] : [", token ", make("bdi", {}, atToken)])];
}

function showDetails() {
  const details = $("details"), edge = state.edge;
  if (edge === null) {
    details.replaceChildren(make("p", { class: "hint" },
      "Choose an edge, in the diagram or in the list, to see its numbers; a node, to see only ",
      "what flows in and out of it."));
    return;
  }
  const facts = FACTS.filter(([, column]) => edges[column]).flatMap(([name, column, write]) =>
    [make("dt", {}, name), make("dd", {}, write(edges[column][edge], edge))]);
  const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => choose(null));
  details.replaceChildren(
    close,
    make("h2", {}, edges.name[edge]),
    make("p", {}, ...placeOf(edge)),
    make("dl", {}, ...facts));
}

function markChosen() {
  for (const old of document.querySelectorAll(".chosen")) {
    old.classList.remove("chosen");
    old.removeAttribute("aria-pressed");
  }
  for (const kind of ["edge", "row"]) {
    const found = document.querySelector(`[data-key="${kind}-${state.edge}"]`);
    found?.classList.add("chosen");
    found?.setAttribute("aria-pressed", "true");
  }
}

function sayStatus(shown) {
  const said = [`${count(shown.length)} of ${plural(edges.name.length, "edge")} shown.`];
  const unknown = edges[state.quantity].filter(value => value === null).length;
  if (unknown) said.push(`${plural(unknown, "edge")} without a finite number.`);
  if (state.node !== null) {
    said.push(`Only what flows in and out of ${nodes[state.node].name} (Escape undoes this).`);
  }
  if (shown.length > MOST_LINKS) said.push(`The diagram draws the ${MOST_LINKS} strongest.`);
  if (shown.length > MOST_ROWS) said.push(`The list names the ${MOST_ROWS} strongest.`);
  if (spec.left_out) {
    said.push(`${plural(spec.left_out, "weaker edge")} left out of this page (max_edges).`);
  }
  $("status").textContent = said.join(" ");
}

function explainColors(drawn) {
  const links = new Set(drawn.map(colorOf));
  const kinds = new Set(drawn.flatMap(edge => [edges.source[edge], edges.target[edge]])
    .map(node => nodes[node].kind));
  const marks = linkLegend().filter(([color]) => links.has(color));
  for (const [kind, name] of Object.entries(look.node_names)) {
    if (kinds.has(kind)) marks.push([look.nodes[kind], name]);
  }
  $("legend").replaceChildren(...marks.map(([color, name]) =>
    make("li", {}, make("span", { class: "swatch", style: `background: ${color}` }), name)));
}

// What a person does

async function update() {
  const focused = document.activeElement?.getAttribute("data-key");
  const shown = shownEdges(), drawn = shown.slice(0, MOST_LINKS), top = largest();
  $("quantity").value = state.quantity;
  $("search").value = state.query;
  $("slider").value = top ? Math.round(SLIDER_STEPS * state.threshold / top) : 0;
  $("slider").setAttribute("aria-valuetext", number(state.threshold));
  if (document.activeElement !== $("threshold")) {
    $("threshold").value = Number(state.threshold.toPrecision(3));
  }
  for (const box of document.querySelectorAll("#positions input")) {
    box.checked = state.positions.has(Number(box.value));
  }
  $("show-all").disabled = !state.threshold && !state.query && state.node === null &&
    state.positions.size === positions.length;
  sayStatus(shown);
  explainColors(drawn);
  list(shown.slice(0, MOST_ROWS));
  await draw(drawn);
  markChosen();
  // Rows, links and nodes are new elements; the focus stays on what it was on.
  if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
}

let isDue = false;
/** Change the state, and show it before the next frame. */
function set(changes) {
  Object.assign(state, changes);
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    update();
  });
}

function showAll() {
  set({ threshold: 0, positions: new Set(positions.keys()), query: "", node: null });
}

function choose(edge) {
  state.edge = edge;
  showDetails();
  markChosen();
  const row = $("list").querySelector(".chosen"), box = $("list");
  if (row && (row.offsetTop < box.scrollTop || row.offsetTop > box.scrollTop + box.clientHeight)) {
    box.scrollTop = row.offsetTop;
  }
}

/** What an element of the diagram or the list stands for is in its key. */
function activate(element) {
  const [kind, id] = element.getAttribute("data-key").split("-");
  if (kind === "node") set({ node: state.node === Number(id) ? null : Number(id) });
  else choose(Number(id));
}

function addControls() {
  for (const [key, name] of spec.quantities) {
    $("quantity").append(make("option", { value: key }, name));
  }
  $("positions").hidden = positions[0]?.seq_idx == null;
  for (const [index, { seq_idx, token }] of positions.entries()) {
    $("positions").append(make("label", { class: "chip" },
      make("input", { type: "checkbox", value: index }),
      make("small", {}, String(seq_idx)), make("bdi", {}, token ?? "")));
  }
}

function listen() {
  const on = (id, event, answer) => $(id).addEventListener(event, answer);
  on("quantity", "change", event => set({ quantity: event.target.value, threshold: 0 }));
  on("slider", "input", event =>
    set({ threshold: largest() * event.target.value / SLIDER_STEPS }));
  on("threshold", "input", event => set({ threshold: Math.max(event.target.valueAsNumber || 0, 0) }));
  on("search", "input", event => set({ query: event.target.value }));
  on("show-all", "click", showAll);
  on("all-positions", "click", () => set({ positions: new Set(positions.keys()) }));
  on("no-positions", "click", () => set({ positions: new Set() }));
  on("positions", "change", () => {
    const boxes = [...document.querySelectorAll("#positions input:checked")];
    set({ positions: new Set(boxes.map(box => Number(box.value))) });
  });
  on("skip", "click", () => ($("list").querySelector("button") ?? $("list")).focus());
  for (const id of ["plot", "list"]) {
    on(id, "click", event => {
      const element = event.target.closest("[data-key]");
      if (element) activate(element);
    });
  }
  on("plot", "keydown", event => {
    const element = event.target.closest("[data-key]");
    if (!element || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    activate(element);
  });
  on("list", "keydown", event => {
    const row = event.target.closest("li");
    const next = { ArrowDown: row?.nextSibling, ArrowUp: row?.previousSibling }[event.key];
    if (!next) return;
    event.preventDefault();
    next.firstChild.focus();
  });
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    if (state.node !== null) set({ node: null });
    else choose(null);
  });
  let width = $("diagram").clientWidth;
  new ResizeObserver(() => {
    if (width === $("diagram").clientWidth) return;
    width = $("diagram").clientWidth;
    set({});
  }).observe($("diagram"));
}

$("outcome").hidden = spec.outcome === null;
$("outcome").textContent = spec.outcome ?? "";
addControls();
listen();
showDetails();
update();
