"""Nodes and edges of a model, by name and by number: plain data, nothing here runs a model."""

from circuit_trace.graph.build import Reads as Reads
from circuit_trace.graph.build import Stream as Stream
from circuit_trace.graph.build import Writes as Writes
from circuit_trace.graph.build import build_graph as build_graph
from circuit_trace.graph.grammar import ARROW as ARROW
from circuit_trace.graph.grammar import EdgeName as EdgeName
from circuit_trace.graph.grammar import EdgeSpec as EdgeSpec
from circuit_trace.graph.grammar import Name as Name
from circuit_trace.graph.grammar import NodeSpec as NodeSpec
from circuit_trace.graph.grammar import whole_number as whole_number
from circuit_trace.graph.graph import Edges as Edges
from circuit_trace.graph.graph import Graph as Graph
from circuit_trace.graph.nodes import DestModule as DestModule
from circuit_trace.graph.nodes import DestNode as DestNode
from circuit_trace.graph.nodes import Edge as Edge
from circuit_trace.graph.nodes import NodeKind as NodeKind
from circuit_trace.graph.nodes import SrcNode as SrcNode
from circuit_trace.graph.transformer import Shape as Shape
from circuit_trace.graph.transformer import graph_for as graph_for
from circuit_trace.graph.transformer import graph_of as graph_of
