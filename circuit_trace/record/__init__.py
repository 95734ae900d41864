"""hooks → record: what one pass left behind as data, and the numbers, tables and files made of it."""

from circuit_trace.record.about import About as About
from circuit_trace.record.compare import Pair as Pair
from circuit_trace.record.compare import arrow as arrow
from circuit_trace.record.compare import pair_of as pair_of
from circuit_trace.record.diff import RecordDiff as RecordDiff
from circuit_trace.record.diff import check_same_graph as check_same_graph
from circuit_trace.record.flows import DestFlow as DestFlow
from circuit_trace.record.flows import EdgeFlow as EdgeFlow
from circuit_trace.record.heads import HeadRecord as HeadRecord
from circuit_trace.record.lens import Direction as Direction
from circuit_trace.record.lens import Tokens as Tokens
from circuit_trace.record.lens import is_rounding as is_rounding
from circuit_trace.record.lens import lens_of as lens_of
from circuit_trace.record.lens import top_tokens as top_tokens
from circuit_trace.record.numbers import BatchIdx as BatchIdx
from circuit_trace.record.numbers import EdgeNumbers as EdgeNumbers
from circuit_trace.record.numbers import edge_numbers as edge_numbers
from circuit_trace.record.outcome import Outcome as Outcome
from circuit_trace.record.positions import read_at as read_at
from circuit_trace.record.record import Record as Record
from circuit_trace.record.rows import Rows as Rows
from circuit_trace.record.table import edge_table as edge_table
from circuit_trace.record.table import top_rows as top_rows
from circuit_trace.record.unembedding import Lens as Lens
