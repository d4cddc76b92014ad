"""Which models are in memory: the pure decision, and the one owner that carries it out."""

from edge.residency.book import Lease
from edge.residency.model import Fitted, LoadedEngine, ModelState, Planner, Spec, Version, stamp_of
from edge.residency.pool import Pool, PoolLimits

__all__ = [
    "Fitted",
    "Lease",
    "LoadedEngine",
    "ModelState",
    "Planner",
    "Pool",
    "PoolLimits",
    "Spec",
    "Version",
    "stamp_of",
]
