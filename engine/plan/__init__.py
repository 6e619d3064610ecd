"""From a graph to a frozen plan: implementations, memory, cost."""

from .lower import lower
from .memory import Lifetime, assign
from .plan import Plan, PlannedNode, Ref

__all__ = ["Lifetime", "Plan", "PlannedNode", "Ref", "assign", "lower"]
