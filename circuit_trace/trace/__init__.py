"""hooks → trace: the frozen record of one pass, which outlives it."""

from circuit_trace.trace.about import About as About
from circuit_trace.trace.compare import Pair as Pair
from circuit_trace.trace.compare import arrow as arrow
from circuit_trace.trace.compare import pair_of as pair_of
from circuit_trace.trace.diff import RecordDiff as RecordDiff
from circuit_trace.trace.diff import check_same_graph as check_same_graph
from circuit_trace.trace.flows import DestFlow as DestFlow
from circuit_trace.trace.flows import EdgeFlow as EdgeFlow
from circuit_trace.trace.heads import HeadRecord as HeadRecord
from circuit_trace.trace.lens import Direction as Direction
from circuit_trace.trace.lens import Tokens as Tokens
from circuit_trace.trace.lens import is_rounding as is_rounding
from circuit_trace.trace.lens import lens_of as lens_of
from circuit_trace.trace.lens import top_tokens as top_tokens
from circuit_trace.trace.numbers import BatchIdx as BatchIdx
from circuit_trace.trace.numbers import EdgeNumbers as EdgeNumbers
from circuit_trace.trace.numbers import edge_numbers as edge_numbers
from circuit_trace.trace.outcome import Outcome as Outcome
from circuit_trace.trace.positions import read_at as read_at
from circuit_trace.trace.record import Record as Record
from circuit_trace.trace.rows import Rows as Rows
from circuit_trace.trace.table import edge_table as edge_table
from circuit_trace.trace.table import top_rows as top_rows
from circuit_trace.trace.trace import Trace as Trace
from circuit_trace.trace.trace import TraceDiff as TraceDiff
from circuit_trace.trace.unembedding import Lens as Lens
