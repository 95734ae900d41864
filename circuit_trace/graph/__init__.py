"""anatomy → graph: nodes and edges, by name and by number; nothing here runs a model."""

from circuit_trace.graph.edges import Edge as Edge
from circuit_trace.graph.edges import Edges as Edges
from circuit_trace.graph.grammar import ARROW as ARROW
from circuit_trace.graph.grammar import EdgeName as EdgeName
from circuit_trace.graph.grammar import EdgeSpec as EdgeSpec
from circuit_trace.graph.grammar import Name as Name
from circuit_trace.graph.grammar import NodeSpec as NodeSpec
from circuit_trace.graph.grammar import whole_number as whole_number
from circuit_trace.graph.graph import Graph as Graph
from circuit_trace.graph.graph import build_graph as build_graph
from circuit_trace.graph.nodes import DestModule as DestModule
from circuit_trace.graph.nodes import DestNode as DestNode
from circuit_trace.graph.nodes import SrcNode as SrcNode
