"""How much memory training takes, and with which settings it fits."""

from raft_peft.planning.plan import MemoryPlan
from raft_peft.planning.search import plan_memory

__all__ = ["MemoryPlan", "plan_memory"]
