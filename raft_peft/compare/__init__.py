"""Which method is best on your data? Trains them side by side and writes a table, pictures and predictions."""

from raft_peft.compare.comparison import compare_methods
from raft_peft.compare.sequence_classification import sequence_classification_trainer
from raft_peft.compare.settings import CompareSettings

__all__ = ["CompareSettings", "compare_methods", "sequence_classification_trainer"]
