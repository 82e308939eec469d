"""Pictures, from plain arrays. They need matplotlib: pip install raft-peft[plots]."""

from raft_peft.plots.curves import plot_curves
from raft_peft.plots.evaluation import plot_evaluation
from raft_peft.plots.predictions import plot_distributions, plot_entropy_change, plot_predictions
from raft_peft.plots.uncertainty import plot_uncertainty

__all__ = [
    "plot_curves",
    "plot_distributions",
    "plot_entropy_change",
    "plot_evaluation",
    "plot_predictions",
    "plot_uncertainty",
]
