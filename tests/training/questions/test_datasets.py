"""The datasets of a run on typed questions."""

import pytest
from datasets import Dataset
from support.questions import question_rows
from support.training import config

from raft_peft.data.questions.dataset import as_question_dataset
from raft_peft.training.questions.datasets import QuestionDatasets


def test_a_template_writes_the_states_of_rows_that_have_none(smollm2_tokenizer, tmp_path):
    with_states = as_question_dataset(question_rows(3), "train")
    columns = with_states.remove_columns("state")
    columns = columns.add_column("text", [row["state"] for row in question_rows(3)])

    def encoded(dataset, **options):
        datasets = QuestionDatasets(config(tmp_path, **options))
        datasets.open(smollm2_tokenizer, smollm2_tokenizer)
        return datasets.encode(dataset, "train")["input_ids"], datasets.form_of_prompts()["prompt_template"]

    expected, template = encoded(with_states)
    assert template is None
    assert encoded(columns, prompt_template="{text}") == (expected, "{text}")
    # Rows that have a state keep it.
    assert encoded(with_states, prompt_template="{text}") == (expected, "{text}")
    with pytest.raises(
        ValueError, match=r"The train dataset cannot be used. Row 0: The prompt template names .* 'txt'"
    ):
        encoded(Dataset.from_dict({"questions": columns["questions"]}), prompt_template="{txt}")


def test_reasonings_beside_questions_are_refused(smollm2_tokenizer, tmp_path):
    rows = as_question_dataset(question_rows(2), "train")
    datasets = QuestionDatasets(config(tmp_path))
    datasets.open(smollm2_tokenizer, smollm2_tokenizer)
    with pytest.raises(ValueError, match="train dataset has a column `reasoning` beside its typed questions"):
        datasets.encode(rows.add_column("reasoning", ["It is so.", None]), "train")
    assert len(datasets.encode(rows.add_column("reasoning", [None, None]), "train")) == 2
