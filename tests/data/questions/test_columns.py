import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from raft_peft import questions_from_columns
from raft_peft.data.questions.dataset import as_question_rows

NUMBER = {"type": "number", "instructions": "How high is the {column} of this text?", "criteria": "1..5..0.5"}
ROWS = [{"text": "What a day!", "valence": 4.2, "arousal": "3.5"}, {"text": "Hm.", "valence": 2, "arousal": None}]


def test_one_question_for_several_columns():
    first, second = as_question_rows(
        questions_from_columns(ROWS, ["valence", "arousal"], prompt="{text}", question=NUMBER)
    )
    assert (first.state, second.state) == ("What a day!", "Hm.")
    assert [one.instructions for one in first.questions] == [
        "How high is the valence of this text?",
        "How high is the arousal of this text?",
    ]
    assert {name: target.mean for name, target in first.targets.items()} == {"valence": 4.2, "arousal": 3.5}
    assert list(second.targets) == ["valence"]


def test_a_question_for_each_column_and_classes_by_name():
    features = Features({"text": Value("string"), "kind": ClassLabel(names=["ham", "spam"]), "good": Value("bool")})
    dataset = Dataset.from_dict({"text": ["a", "b"], "kind": [1, -1], "good": [True, False]}, features=features)
    columns = {"kind": {"type": "choice", "criteria": ["spam", "ham"]}, "good": {"type": "noul"}}
    prompt = [{"role": "user", "content": "Read: {text}"}]
    first, second = as_question_rows(questions_from_columns(dataset, columns, prompt=prompt))
    assert first.state == [{"role": "user", "content": "Read: a"}]
    assert {name: target.mean for name, target in first.targets.items()} == {"kind": 0.0, "good": 1.0}
    assert list(second.targets) == ["good"]


@pytest.mark.parametrize(
    ("columns", "question", "message"),
    [
        ("valence", NUMBER, "`columns` is 'valence'"),
        ([], NUMBER, "`columns` is"),
        (["valence"], None, "`columns` are names alone. Set `question`"),
        (["valence", "valence"], NUMBER, "`columns` has 'valence' twice"),
        ({"valence": NUMBER}, NUMBER, "Leave one out"),
        (["dominance"], NUMBER, "row 0: the row has the columns .* and no 'dominance'"),
        (["valence"], {**NUMBER, "criteria": [1, 2]}, "row 0: question 'valence': the target 4.2 is outside"),
        (["text"], NUMBER, "row 0: question 'text': the target 'What a day!' is not one of"),
    ],
)
def test_what_makes_no_questions(columns, question, message):
    with pytest.raises(ValueError, match=message):
        questions_from_columns(ROWS, columns, prompt="{text}", question=question)
    with pytest.raises(ValueError, match="There are no rows"):
        questions_from_columns([], ["valence"], prompt="{text}", question=NUMBER)


def test_json_text_in_the_columns():
    made = questions_from_columns(ROWS, ["valence"], prompt="{text}", question=NUMBER)
    assert json.loads(made[0]["state"]) == "What a day!"
