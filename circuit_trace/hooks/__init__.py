"""plan → hooks: attached when a context opens, gone when it closes; patch first, record last."""

from circuit_trace.hooks.draws import same_every_time as same_every_time
from circuit_trace.hooks.patches import OpenPatch as OpenPatch
from circuit_trace.hooks.patches import check_alone as check_alone
from circuit_trace.hooks.patches import open_patches as open_patches
from circuit_trace.hooks.patches import unpatched as unpatched
from circuit_trace.hooks.record import N_DIRECTIONS as N_DIRECTIONS
from circuit_trace.hooks.record import PassRecord as PassRecord
from circuit_trace.hooks.record import Read as Read
from circuit_trace.hooks.record import directions as directions
from circuit_trace.hooks.rows import run_rows as run_rows
from circuit_trace.hooks.scope import Scope as Scope
from circuit_trace.hooks.session import Session as Session
from circuit_trace.hooks.verify import verify as verify
