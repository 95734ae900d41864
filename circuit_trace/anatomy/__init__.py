"""model → anatomy: where a model reads and writes its residual stream."""

from circuit_trace.anatomy.find import find_anatomy as find_anatomy
from circuit_trace.anatomy.places import Places as Places
from circuit_trace.anatomy.sites import Anatomy as Anatomy
from circuit_trace.anatomy.sites import DestSite as DestSite
from circuit_trace.anatomy.sites import HeadsPoint as HeadsPoint
from circuit_trace.anatomy.sites import HeadTensor as HeadTensor
from circuit_trace.anatomy.sites import Point as Point
from circuit_trace.anatomy.sites import PostNorm as PostNorm
from circuit_trace.anatomy.sites import Reader as Reader
from circuit_trace.anatomy.sites import SourceSite as SourceSite
from circuit_trace.anatomy.sites import Unembed as Unembed
