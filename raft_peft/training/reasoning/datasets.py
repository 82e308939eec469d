"""The datasets of a run whose rows have reasonings before their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from raft_peft.data.dataset import ENCODED_COLUMNS
from raft_peft.data.reasoning.reasonings import REASONING, SCORE_PREFIX, ScorePrefix
from raft_peft.grid import NumberGrid
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.datasets import RunDatasets


class ReasoningDatasets(RunDatasets):
    """Encodes rows with reasonings: for each of these, what stands before the score.

    Raises:
        ValueError: a setting with which nothing can be written before the score.
    """

    columns = (*ENCODED_COLUMNS, "reasoning_tokens")

    def __init__(self, grid: NumberGrid, args: RegressionAwareConfig, loss: Any = None):
        if args.attention == "bidirectional":
            raise ValueError(
                "`attention='bidirectional'` lets each token see what comes after it, so that nothing is learned of "
                "writing a reasoning. Leave it at 'causal', or drop the column `reasoning` and `score_prefix`."
            )
        super().__init__(grid, args, loss)
        if self.template is not None and REASONING in self.template.columns:
            raise ValueError(
                f"`score_prefix={args.score_prefix!r}` leads from the column `{REASONING}` to the score, and "
                f"`prompt_template` writes this column into the prompt. Leave out `score_prefix`, or {{{REASONING}}} "
                "in the template."
            )
        self.score_prefix = ScorePrefix(SCORE_PREFIX if args.score_prefix is None else args.score_prefix)
        self.stand_in = Dataset.from_dict(
            {
                "input_ids": [[[0]]],
                "grid_token_ids": [[[[0]] * len(grid)]],
                "reasoning_tokens": [[0]],
                "label": [0.0],
            }
        )
        self._encoded_here.add(self.stand_in)

    def _grid_token_ids(self, row: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, row["grid_token_ids"][0]))
