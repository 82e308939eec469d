"""Regression-aware fine-tuning (RAFT) of language models: predict a number, train on its squared error."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raft_peft.messages import hush_libraries

if TYPE_CHECKING:
    from raft_peft.data.questions.columns import questions_from_columns
    from raft_peft.distribution import GridDistribution
    from raft_peft.grid import NumberGrid
    from raft_peft.planning import plan_memory
    from raft_peft.prediction.evaluation import evaluate_rows
    from raft_peft.prediction.files import predict_file
    from raft_peft.prediction.merging import merge_and_save
    from raft_peft.prediction.pipeline import TextRegressionPipeline
    from raft_peft.prediction.predictor import RegressionPredictor
    from raft_peft.prediction.reasoning.files import reason_file
    from raft_peft.prediction.remote.decisions import RemoteDecisions
    from raft_peft.prediction.remote.predictor import RemoteRegressionPredictor
    from raft_peft.prediction.remote.served import ServedRegressionPredictor
    from raft_peft.prediction.sharing import push_to_hub
    from raft_peft.training.config import RegressionAwareConfig
    from raft_peft.training.number_tokens import add_number_tokens
    from raft_peft.training.quantization import qlora
    from raft_peft.training.trainer import RegressionAwareTrainer

__version__ = "0.1.0"

hush_libraries()

__all__ = [
    "GridDistribution",
    "NumberGrid",
    "RegressionAwareConfig",
    "RegressionAwareTrainer",
    "RegressionPredictor",
    "RemoteDecisions",
    "RemoteRegressionPredictor",
    "ServedRegressionPredictor",
    "TextRegressionPipeline",
    "add_number_tokens",
    "evaluate_rows",
    "merge_and_save",
    "plan_memory",
    "predict_file",
    "push_to_hub",
    "qlora",
    "questions_from_columns",
    "reason_file",
]

# Loaded when first asked for, so that importing the package loads neither torch nor transformers.
_MODULES = {
    "GridDistribution": "raft_peft.distribution",
    "NumberGrid": "raft_peft.grid",
    "RegressionAwareConfig": "raft_peft.training.config",
    "RegressionAwareTrainer": "raft_peft.training.trainer",
    "RegressionPredictor": "raft_peft.prediction.predictor",
    "RemoteDecisions": "raft_peft.prediction.remote.decisions",
    "RemoteRegressionPredictor": "raft_peft.prediction.remote.predictor",
    "ServedRegressionPredictor": "raft_peft.prediction.remote.served",
    "TextRegressionPipeline": "raft_peft.prediction.pipeline",
    "add_number_tokens": "raft_peft.training.number_tokens",
    "evaluate_rows": "raft_peft.prediction.evaluation",
    "merge_and_save": "raft_peft.prediction.merging",
    "plan_memory": "raft_peft.planning",
    "predict_file": "raft_peft.prediction.files",
    "push_to_hub": "raft_peft.prediction.sharing",
    "qlora": "raft_peft.training.quantization",
    "questions_from_columns": "raft_peft.data.questions.columns",
    "reason_file": "raft_peft.prediction.reasoning.files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
