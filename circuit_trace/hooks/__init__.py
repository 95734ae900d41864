"""plan → hooks: attached when a context opens, gone when it closes; patch first, record last."""

from circuit_trace.hooks.record import N_DIRECTIONS as N_DIRECTIONS
from circuit_trace.hooks.record import PassRecord as PassRecord
from circuit_trace.hooks.record import Read as Read
from circuit_trace.hooks.record import directions as directions
from circuit_trace.hooks.rows import run_rows as run_rows
from circuit_trace.hooks.session import Session as Session
from circuit_trace.hooks.verify import verify as verify
