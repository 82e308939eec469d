import json

import pytest

from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.row_datasets import read_dataset

ROWS = ([3, 4, 4], 2, [5])
SHARES = ({"3": 0.5, "4": 0.5}, 2.5, {"5": 1})


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (ROWS, [[3, 4, 4], [2], [5]]),
        (
            SHARES,
            [
                {"3": 0.5, "4": 0.5, "2.5": None, "5": None},
                {"3": None, "4": None, "2.5": 1, "5": None},
                {"3": None, "4": None, "2.5": None, "5": 1},
            ],
        ),
    ],
)
def test_ratings_of_a_file(tmp_path, suffix, labels, read):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"prompt": "a", "stars": label}) for label in labels))
    else:
        cells = [json.dumps(label).replace('"', '""') for label in labels]
        path.write_text("prompt,stars\n" + "\n".join(f'a,"{cell}"' for cell in cells))
    assert read_dataset(str(path), label_column="stars")["stars"][:] == read


def test_shares_among_lists_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "label": [3]}\n{"prompt": "a", "label": {"3": 1.0}}\n')
    with pytest.raises(ValueError, match=r"row 1 has the label \{'3': 1.0\}, which does not fit .*such as \[3\]"):
        read_dataset(str(path))


def test_reasonings_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "label": 1, "reasoning": one} for one in ("b", ["c", "d"], None)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_dataset(str(path))["reasoning"][:] == [["b"], ["c", "d"], None]
    path = tmp_path / "rows.csv"
    path.write_text("prompt,reasoning,label\na,b,1\na,,2\n")
    assert read_dataset(str(path))["reasoning"][:] == ["b", None]


def test_preferences_stand_beside_labels_in_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,chosen,rejected,margin\na,2.5,,,\n,,b,c,0.5\n")
    read = read_dataset(str(path), PromptTemplate("{text}:"))
    assert read[:] == {
        "text": ["a", ""],
        "label": [2.5, None],
        "chosen": ["", "b"],
        "rejected": ["", "c"],
        "margin": ["", "0.5"],
    }
