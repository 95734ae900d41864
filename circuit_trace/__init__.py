"""See what flows along the edges of a transformer's computation graph while it runs patched.

First, wrap a model. It is left as it is:

>>> import circuit_trace as ct
>>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
>>> model = ct.wrap(ct.load_model("bundled"), seq_len=15)

Second, say which edges are patched. Name them, or score all edges and choose a circuit:

>>> scores = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS), method="eap-ig")
>>> circuit = scores.circuit(n_edges=40, method="greedy")

Third, trace a patched pass. The record stays when the pass is over:

>>> trace = model.trace(
...     CLEAN, corrupt=CORRUPT, masks=circuit, answers=ANSWERS, complement=True
... )
>>> print(f"{trace.outcome.explained:.2f} {trace.outcome.faithfulness:.2f}")
1.00 0.83

Then look at it:

>>> figure = trace.draw()
>>> flow = trace.edge("A1.0->Resid End", 14)
>>> tuple(flow.clean.shape) == tuple(flow.received.shape) == (1, 15, 64)
True

Further on: `trace.table()` and `trace.explore()` (the record as a table, as a page), `trace.save` and
`ct.Trace.load` (as a file), `trace.diff` (two passes), `model.patch` (passes that you run yourself),
`ct.exact_scores` and `ct.acdc` (scores by measuring, a circuit by searching), `ct.faithfulness`
(circuits of every size), `ct.draw_seq_graph` and `ct.draw_difference` (scores as pictures),
`ct.load_scores` and `ct.save_scores` (other tools' files).

The rooms, from the lowest to the highest: `graph` (nodes and edges), `anatomy` (where a model reads and
writes its residual stream), `plan` (which edges are patched, with what), `hooks` (attached on entry,
gone on exit), `record` (one pass as data), `engine` (runs passes), `visualize` (pictures), `score`
(scores, circuits, faithfulness), the façades `trace` and `model` on top of what they offer, `cli`.
`integrations` holds what knows other software by name.
"""

from typing import TYPE_CHECKING, Any

from circuit_trace.anatomy import Anatomy as Anatomy
from circuit_trace.anatomy import DestSite as DestSite
from circuit_trace.anatomy import HeadsPoint as HeadsPoint
from circuit_trace.anatomy import Point as Point
from circuit_trace.anatomy import PostNorm as PostNorm
from circuit_trace.anatomy import Reader as Reader
from circuit_trace.anatomy import SourceSite as SourceSite
from circuit_trace.anatomy import Unembed as Unembed
from circuit_trace.errors import AnatomyError as AnatomyError
from circuit_trace.errors import CircuitTraceError as CircuitTraceError
from circuit_trace.errors import DataWarning as DataWarning
from circuit_trace.errors import EdgeError as EdgeError
from circuit_trace.errors import EdgeWarning as EdgeWarning
from circuit_trace.errors import FigureError as FigureError
from circuit_trace.errors import FormatError as FormatError
from circuit_trace.errors import FormatWarning as FormatWarning
from circuit_trace.errors import InputError as InputError
from circuit_trace.errors import MaskError as MaskError
from circuit_trace.errors import MaskWarning as MaskWarning
from circuit_trace.errors import NoTraceError as NoTraceError
from circuit_trace.errors import RecordWarning as RecordWarning
from circuit_trace.graph import DestNode as DestNode
from circuit_trace.graph import Edge as Edge
from circuit_trace.graph import Graph as Graph
from circuit_trace.graph import SrcNode as SrcNode
from circuit_trace.model import PatchableModel as PatchableModel
from circuit_trace.model import wrap as wrap
from circuit_trace.plan import AblationType as AblationType
from circuit_trace.plan import PruneScores as PruneScores
from circuit_trace.plan import SourceOutputs as SourceOutputs
from circuit_trace.record import DestFlow as DestFlow
from circuit_trace.record import EdgeFlow as EdgeFlow
from circuit_trace.record import HeadRecord as HeadRecord
from circuit_trace.record import Outcome as Outcome
from circuit_trace.score.acdc import AcdcResult as AcdcResult
from circuit_trace.score.acdc import acdc as acdc
from circuit_trace.score.circuit import circuit as circuit
from circuit_trace.score.edges import score_edges as score_edges
from circuit_trace.score.exact import exact_scores as exact_scores
from circuit_trace.score.faithfulness import Faithfulness as Faithfulness
from circuit_trace.score.faithfulness import FaithfulnessCurves as FaithfulnessCurves
from circuit_trace.score.faithfulness import faithfulness as faithfulness
from circuit_trace.score.scores import Circuit as Circuit
from circuit_trace.score.scores import EdgeScores as EdgeScores
from circuit_trace.score.scores import ScoresDiff as ScoresDiff
from circuit_trace.trace import Trace as Trace
from circuit_trace.trace import TraceDiff as TraceDiff

if TYPE_CHECKING:
    from circuit_trace.integrations.files import (  # pyright: ignore[reportMissingImports]
        load_scores as load_scores,
    )
    from circuit_trace.integrations.files import (  # pyright: ignore[reportMissingImports]
        save_scores as save_scores,
    )
    from circuit_trace.integrations.models import (  # pyright: ignore[reportMissingImports]
        load_model as load_model,
    )
    from circuit_trace.integrations.networkx import (  # pyright: ignore[reportMissingImports]
        from_networkx as from_networkx,
    )
    from circuit_trace.integrations.networkx import (  # pyright: ignore[reportMissingImports]
        to_networkx as to_networkx,
    )
    from circuit_trace.visualize import draw_difference as draw_difference
    from circuit_trace.visualize import draw_faithfulness as draw_faithfulness
    from circuit_trace.visualize import draw_seq_graph as draw_seq_graph
    from circuit_trace.visualize import explore as explore
    from circuit_trace.visualize import net_viz as net_viz

__all__ = [
    "AblationType",
    "AcdcResult",
    "Anatomy",
    "AnatomyError",
    "Circuit",
    "CircuitTraceError",
    "DataWarning",
    "DestFlow",
    "DestNode",
    "DestSite",
    "Edge",
    "EdgeError",
    "EdgeFlow",
    "EdgeScores",
    "EdgeWarning",
    "Faithfulness",
    "FaithfulnessCurves",
    "FigureError",
    "FormatError",
    "FormatWarning",
    "Graph",
    "HeadRecord",
    "HeadsPoint",
    "InputError",
    "MaskError",
    "MaskWarning",
    "NoTraceError",
    "Outcome",
    "PatchableModel",
    "Point",
    "PostNorm",
    "PruneScores",
    "Reader",
    "RecordWarning",
    "ScoresDiff",
    "SourceOutputs",
    "SourceSite",
    "SrcNode",
    "Trace",
    "TraceDiff",
    "Unembed",
    "acdc",
    "circuit",
    "draw_difference",
    "draw_faithfulness",
    "draw_seq_graph",
    "exact_scores",
    "explore",
    "faithfulness",
    "from_networkx",
    "load_model",
    "load_scores",
    "net_viz",
    "save_scores",
    "score_edges",
    "to_networkx",
    "wrap",
]

_LATER = {
    "visualize": "circuit_trace.visualize",
    "draw_seq_graph": "circuit_trace.visualize",
    "draw_difference": "circuit_trace.visualize",
    "draw_faithfulness": "circuit_trace.visualize",
    "explore": "circuit_trace.visualize",
    "net_viz": "circuit_trace.visualize",
    "from_networkx": "circuit_trace.integrations.networkx",
    "to_networkx": "circuit_trace.integrations.networkx",
    "load_model": "circuit_trace.integrations.models",
    "load_scores": "circuit_trace.integrations.files",
    "save_scores": "circuit_trace.integrations.files",
}


def __getattr__(name: str) -> Any:
    """Import Plotly and TransformerLens only when something that needs them is asked for."""
    if name in _LATER:
        from importlib import import_module

        module = import_module(_LATER[name])
        return module if module.__name__.endswith(f".{name}") else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion shows: what is meant to be used, also where it is imported later."""
    return list(__all__)
