"""graph → plan: which edges are patched, how far, and with what values."""

from circuit_trace.plan.ablation import AblationType as AblationType
from circuit_trace.plan.ablation import ablate_batch as ablate_batch
from circuit_trace.plan.dataset import mean_outputs as mean_outputs
from circuit_trace.plan.heads import HeadsArg as HeadsArg
from circuit_trace.plan.heads import head_names as head_names
from circuit_trace.plan.masks import EdgesArg as EdgesArg
from circuit_trace.plan.masks import NodesArg as NodesArg
from circuit_trace.plan.masks import PruneScores as PruneScores
from circuit_trace.plan.masks import check_scores as check_scores
from circuit_trace.plan.masks import flat_scores as flat_scores
from circuit_trace.plan.masks import score_shape as score_shape
from circuit_trace.plan.masks import select as select
from circuit_trace.plan.masks import unflat_scores as unflat_scores
from circuit_trace.plan.outputs import SiteOutput as SiteOutput
from circuit_trace.plan.outputs import SourceOutputs as SourceOutputs
from circuit_trace.plan.outputs import project as project
from circuit_trace.plan.plan import Plan as Plan
from circuit_trace.plan.plan import make_plan as make_plan
from circuit_trace.plan.plan import warn_if_empty as warn_if_empty
from circuit_trace.plan.scores import EdgeScores as EdgeScores
