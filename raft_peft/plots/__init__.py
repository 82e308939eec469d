"""Pictures, from plain arrays. They need matplotlib: pip install raft-peft[plots]."""

from raft_peft.plots.answers import plot_answers
from raft_peft.plots.cost import plot_cost
from raft_peft.plots.curves import plot_curves
from raft_peft.plots.differences import plot_differences
from raft_peft.plots.evaluation import plot_evaluation
from raft_peft.plots.predictions import plot_distributions, plot_entropy_change, plot_predictions
from raft_peft.plots.uncertainty import TWO_DEVIATIONS, plot_uncertainty

__all__ = [
    "TWO_DEVIATIONS",
    "plot_answers",
    "plot_cost",
    "plot_curves",
    "plot_differences",
    "plot_distributions",
    "plot_entropy_change",
    "plot_evaluation",
    "plot_predictions",
    "plot_uncertainty",
]
