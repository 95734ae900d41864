"""NetworkX graphs of scores, for its algorithms and writers; and GraphML, which many tools read.

Sources and destinations are nodes by their names, an edge has its `score`, and with token positions its
`seq_idx`. An input leads into its head by an edge marked `inner`, which has no score, so that paths run
through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from circuit_trace.errors import FormatError
from circuit_trace.graph import Graph, graph_for, graph_of
from circuit_trace.plan import PruneScores
from circuit_trace.score.scores import EdgeScores

from .listing import Listed, listing_of, read_listing
from .untrusted import check_items

if TYPE_CHECKING:
    import networkx as nx

WHAT = "This graph"


def to_networkx(scores: PruneScores, model: Any = None) -> nx.DiGraph[Any]:
    """Turn scores into a NetworkX graph.

    >>> import circuit_trace as ct
    >>> import networkx as nx
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> masks = model.trace("Mary", corrupt="John", edges=["MLP 0->A1.2.Q", "A1.2->Resid End"]).masks
    >>> graph = to_networkx(masks)
    >>> nx.shortest_path(graph, "MLP 0", "Resid End")
    ['MLP 0', 'A1.2.Q', 'A1.2', 'Resid End']
    >>> graph.edges["A1.2", "Resid End"]
    {'score': 1.0}

    Args:
        scores: `PruneScores`; edges whose score is 0 are left out.
        model: A `PatchableModel`, a `Trace` or a `Graph`; needed where the scores leave modules out.

    Returns:
        A `DiGraph`; a `MultiDiGraph` keyed by `seq_idx` where the scores have token positions. Nodes
        have `kind`, and `layer` and `head` where these apply.

    Raises:
        FormatError, MaskError: The scores do not say what they are for, or do not fit the model.
    """
    import networkx as nx

    ours = graph_for(scores, model)
    listing = listing_of(scores, ours)
    graph: Any = nx.DiGraph() if ours.seq_len is None else nx.MultiDiGraph()
    graph.graph.update(listing.facts)
    for name, node in listing.nodes.items():
        places = {"layer": node.layer, "head": node.head}
        graph.add_node(name, kind=node.kind, **{k: v for k, v in places.items() if v is not None})
    for src, dest, seq_idx, score in listing.edges:
        if seq_idx is None:
            graph.add_edge(src, dest, score=score)
        else:
            graph.add_edge(src, dest, key=seq_idx, score=score, seq_idx=seq_idx)
    graph.add_edges_from(listing.inner, inner=True)
    return graph


def from_networkx(
    graph: nx.DiGraph[Any], model: Any = None, *, in_graph: bool = False
) -> PruneScores:
    """Turn a NetworkX graph into scores; edges that are not there get 0.

    >>> import circuit_trace as ct
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> masks = model.trace("Mary", corrupt="John", edges={"MLP 0->A1.2.Q": 0.5}).masks
    >>> from_networkx(to_networkx(masks))["blocks.1.hook_q_input"][2]
    tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.5000])

    Args:
        graph: As `to_networkx` makes it: nodes by name, `score` on each edge that is not `inner`.
        model: As there; needed where the graph does not say its model's shape in `graph.graph`.
        in_graph: Read 1 for each edge that is there, whatever its score.

    Raises:
        FormatError: It is not directed, for a model of another shape, or lists what is no edge.
    """
    ours = graph_of(model)
    return EdgeScores(_from_networkx(graph, ours, in_graph=in_graph), graph=ours)


def _from_networkx(graph: Any, ours: Graph | None, *, in_graph: bool) -> PruneScores:
    import networkx as nx

    if not isinstance(graph, nx.Graph) or not graph.is_directed():
        raise FormatError(
            f"Expected a directed NetworkX graph (DiGraph or MultiDiGraph); got {type(graph).__name__}."
        )
    return read_listing(graph.graph, _listed(graph), ours, in_graph=in_graph, what=WHAT)


def _listed(graph: Any) -> Iterator[Listed]:
    for src, dest, said in graph.edges(data=True):
        if said.get("inner") is not True:
            yield Listed(src, dest, said.get("seq_idx"), said.get("score"))


def write_graphml(scores: PruneScores, graph: Graph) -> bytes:
    """The NetworkX graph of the scores as GraphML."""
    import networkx as nx

    # Not prettyprint: it walks the tree once more.
    lines = nx.generate_graphml(to_networkx(scores, graph), prettyprint=False)
    return "".join(lines).encode()


def read_graphml(text: str, graph: Graph | None, *, in_graph: bool = False) -> PruneScores:
    """Scores from GraphML, of this library or another.

    Raises:
        FormatError: It is not GraphML, or as `from_networkx`.
    """
    import networkx as nx

    if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise FormatError("This XML declares entities (<!DOCTYPE …>), which GraphML needs none of.")
    check_items(text, "<", "XML")
    try:
        found = nx.parse_graphml(text)
    except Exception as error:  # NetworkX lets through whatever its parser meets
        raise FormatError(
            f"This begins like GraphML and is not ({type(error).__name__}: {str(error)[:120]})."
        ) from error
    return _from_networkx(found, graph, in_graph=in_graph)
