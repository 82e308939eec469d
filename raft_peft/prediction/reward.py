"""A predictor as a reward: a number for each completion, in the form that TRL's trainers take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raft_peft.data.chats import Text, as_text
from raft_peft.data.prompt_template import PromptTemplate

if TYPE_CHECKING:
    from raft_peft.prediction.predictor import RegressionPredictor

PROMPT, COMPLETION = "prompt", "completion"
# What TRL hands to a reward beside the columns of its rows.
_OF_TRAINER = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


class RegressionReward:
    """A reward function for `GRPOTrainer`, `RLOOTrainer` and others of TRL.

    Args:
        predictor: whose number is the reward.
        template: writes the prompt of the predictor, with the names of columns in braces.
        prompt_column, completion_column: the names by which it calls what the policy was given and has written.
        batch_size, batch_tokens: as in `RegressionPredictor.predict`.
    """

    # By this name TRL logs it.
    __name__ = "raft_reward"

    def __init__(
        self,
        predictor: RegressionPredictor,
        template: PromptTemplate,
        *,
        prompt_column: str = PROMPT,
        completion_column: str = COMPLETION,
        batch_size: int = 64,
        batch_tokens: int = 4096,
    ):
        if completion_column not in template.columns:
            raise ValueError(
                f"The prompt template {template!r} has no {{{completion_column}}}, so every completion would have the "
                "same reward. Write it into `template`, or name its column with `completion_column`."
            )
        self._predictor, self._template = predictor, template
        self._columns = prompt_column, completion_column
        self._batch_size, self._batch_tokens = batch_size, batch_tokens

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """The rewards, in the unit of the labels; None where the predictor gave no number.

        Args:
            prompts: what the policy was given: texts, or the messages of chats.
            completions: what it has written, in the same form.
            columns: of the rows, each a list; and what TRL hands over besides, which is left alone.

        Raises:
            ValueError: a column of the template is missing.
        """
        of_rows = {name: values for name, values in columns.items() if name not in _OF_TRAINER}
        rows = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: values[number] for name, values in of_rows.items()}
            row |= dict(zip(self._columns, (as_text(prompt), as_text(completion)), strict=True))
            rows.append(self._template(row, number))
        predictions = self._predictor.predict(
            rows, self._batch_size, batch_tokens=self._batch_tokens, show_progress=False
        )
        return [float(number) if math.isfinite(number) else None for number in predictions]


def reward_of(predictor: RegressionPredictor, template: Any = None, **options: Any) -> RegressionReward:
    """The reward that a predictor is, see `RegressionPredictor.as_reward`."""
    written = PromptTemplate.of(template) or predictor.prompt_form.template
    if written is None:
        raise ValueError(
            "How a completion is put into a prompt is not known, since the model was trained without a prompt "
            "template. Pass `template`, such as 'Question: {prompt} Answer: {completion} Score:'."
        )
    return RegressionReward(predictor, written, **options)
