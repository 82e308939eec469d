"""Which method is best on your data? Trains them side by side and writes a table, pictures and predictions."""

from raft_peft.compare.comparison import compare_methods
from raft_peft.compare.settings import CompareSettings

__all__ = ["CompareSettings", "compare_methods"]
