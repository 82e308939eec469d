import json

import pytest
from datasets import Dataset

from raft_peft.data.questions.dataset import as_question_rows
from raft_peft.tasks import get_question_task
from raft_peft.tasks.typed_decisions import load_typed_decisions

QUESTIONS = {
    "action": {"type": "choice", "instructions": "What now?", "criteria": {"stop": "end it", "go": "carry on"}},
    "risk": {"type": "score", "instructions": "How risky?", "criteria": ["none", "some", "much"]},
    "review": {"type": "noul", "instructions": "A person?", "criteria": {"true": "yes, one", "false": "none"}},
}
GOLD = {
    "action": {"type": "choice", "label": "go", "probabilities": {"go": 0.75, "stop": 0.25}},
    "risk": {"type": "score", "label": "1", "score": 1.2, "probabilities": {"0": 0.1, "1": 0.6, "2": 0.301}},
    "review": {"type": "noul", "label": "true", "probabilities": {"false": 0.1, "true": 0.9}},
}


def case(name, gold=GOLD):
    state = {"agent": {"steps": 3}, "note": "zoë"}
    columns = {"state": state, "questions": QUESTIONS, "gold": gold}
    return {
        "id": name, "workflow": "security_incidents",
        **{column: json.dumps(value, ensure_ascii=False) for column, value in columns.items()},
        "risk_label": "1",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_cases_in_their_own_format(tmp_path, kind):
    for split, names in (("train", "ab"), ("test", "c")):
        dataset = Dataset.from_list([case(name) for name in names])
        if kind == "parquet":
            dataset.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        else:
            dataset.to_json(tmp_path / f"{split}.jsonl")
    splits = get_question_task("typed_decisions").load(tmp_path)
    assert {name: split["id"][:] for name, split in splits.items()} == {"train": ["a", "b"], "test": ["c"]}
    row = next(as_question_rows(splits["test"]))
    assert row.state == {"agent": {"steps": 3}, "note": "zoë"}
    assert [(one.id, one.type) for one in row.questions] == [
        ("action", "choice"),
        ("risk", "score"),
        ("review", "predicate"),
    ]
    assert row.targets["action"].values == (0.0, 1.0)
    assert row.targets["action"].shares == (0.25, 0.75)
    # Shares are rounded in the dataset, and are divided by their sum.
    assert row.targets["risk"].mean == pytest.approx((0.6 + 2 * 0.301) / 1.001)
    assert row.targets["review"].mean == pytest.approx(0.9)


def test_cases_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no train"):
        load_typed_decisions(tmp_path)
    wrong = {"risk": {"type": "score", "probabilities": {"0": 0.5, "9": 0.5}}}
    for split in ("train", "test"):
        Dataset.from_list([case("a", wrong)]).to_json(tmp_path / f"{split}.jsonl")
    with pytest.raises(ValueError, match="The answers of the case 'a' do not fit its questions"):
        load_typed_decisions(tmp_path)
    with pytest.raises(ValueError, match=r"no task of typed questions 'decisions'\. Choose one of: typed_decisions"):
        get_question_task("decisions")
