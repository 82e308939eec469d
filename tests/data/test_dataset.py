import logging
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets.utils._dill import dumps
from support.encoding import EncodingLog, encode_from_disk

from raft_peft import NumberGrid
from raft_peft.data.dataset import _hash_of_source, encode_dataset
from raft_peft.data.prompts import PromptEncoder
from raft_peft.grid.number_end import NumberEnd
from raft_peft.methods import METHODS


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(tokenizer, NumberGrid(range(5)), max_length=16)


def encode(dataset, encoder, **options):
    return encode_dataset(dataset, "train", encoder, **{"label_column": "label", "method": METHODS["raft"], **options})


def test_whole_labels_in_front_do_not_make_the_rest_integers(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1.0}] * 1500 + [{"prompt": "b", "label": 2.5}])
    assert encode(dataset, encoder)["label"][1500] == 2.5


def test_integer_and_class_labels_become_floats(encoder):
    features = Features({"prompt": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = Dataset.from_list([{"prompt": "a", "label": 1}], features=features)
    assert encode(dataset, encoder).features["label"] == Value("float64")


def test_other_columns_are_dropped_and_another_label_column_read(encoder, rows):
    dataset = Dataset.from_list([{**row, "label": 9, "stars": 3.5, "id": "x"} for row in rows])
    encoded = encode(dataset, encoder, label_column="stars")
    assert sorted(encoded.column_names) == ["grid_token_ids", "input_ids", "label"]
    assert set(encoded["label"]) == {3.5}


def test_streams_are_encoded_as_they_are_read(encoder, rows):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert list(encode(stream, encoder)) == list(encode(Dataset.from_list(rows), encoder))


def test_streams_say_once_that_rows_are_cut_and_labels_out_of_reach(encoder, caplog):
    rows = [{"prompt": "the item " * 30, "label": 9.0}] * 3000
    stream = encode(Dataset.from_list(rows).to_iterable_dataset(), encoder)
    with caplog.at_level(logging.WARNING):
        assert len(list(stream)) == 3000
    assert caplog.text.count("lost their beginning") == 1
    assert caplog.text.count("outside what this grid can express") == 1


def test_rows_without_labels_can_be_predicted(encoder):
    encoded = encode(Dataset.from_list([{"prompt": "a"}]), encoder, require_label=False)
    assert encoded.column_names == ["input_ids", "grid_token_ids"]


def test_an_empty_label_column_is_none_in_prediction_and_an_error_in_training(encoder):
    features = Features({"prompt": Value("string"), "label": Value("float64")})
    dataset = Dataset.from_dict({"prompt": ["a", "b"], "label": [None, None]}, features=features)
    assert encode(dataset, encoder, require_label=False).column_names == ["input_ids", "grid_token_ids"]
    with pytest.raises(ValueError, match="row 0: the label is missing"):
        encode(dataset, encoder)


def test_the_row_number_counts_from_the_beginning_of_the_dataset(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1.0}] * 1200 + [{"prompt": "a", "label": float("nan")}])
    with pytest.raises(ValueError, match="row 1200: the label is nan"):
        encode(dataset, encoder)


def test_cut_rows_are_counted(encoder, caplog):
    dataset = Dataset.from_list([{"prompt": "the item " * 30, "label": 1.0}, {"prompt": "short", "label": 1.0}])
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder)
    assert "1 of the 2 prompts of the train dataset are longer than max_length=16" in caplog.text


@pytest.mark.parametrize(("renormalize", "outside"), [(False, 2), (True, 2)])
def test_labels_out_of_reach_are_counted(encoder, caplog, renormalize, outside):
    dataset = Dataset.from_list([{"prompt": "a", "label": label} for label in (-1.0, 0.0, 4.0, 7.5)])
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder, renormalize=renormalize)
    assert f"{outside} of the 4 labels of the train dataset (-1 to 7.5) lie outside" in caplog.text


def test_renormalised_predictions_cannot_reach_zero(tokenizer, caplog):
    dataset = Dataset.from_list([{"prompt": "a", "label": 0.5}])
    encoder = PromptEncoder(tokenizer, NumberGrid([1, 2]))
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder)
        assert not caplog.text
        encode(dataset, encoder, renormalize=True)
    assert "what this grid can express, 1 to 2" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 1.0}, "neither `prompt` nor `input_ids`. Rename"),
        ({"prompt": "a", "score": 1.0}, "no label in 'label'. Rename"),
        ({"prompt": "a", "label": 1.0, "image": "x"}, "has images"),
    ],
)
def test_datasets_that_cannot_be_used(encoder, row, message):
    with pytest.raises(ValueError, match=message):
        encode(Dataset.from_list([row]), encoder)


def test_an_empty_dataset(encoder):
    with pytest.raises(ValueError, match="train dataset is empty"):
        encode(Dataset.from_dict({"prompt": [], "label": []}), encoder)


class TestCache:
    @pytest.fixture
    def folder(self, tokenizer, tmp_path):
        """A dataset and a tokenizer on disk: 30 rows, one of them too long, all out of reach."""
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        prompts = ["the item " * 30, *(f"item {item}:" for item in range(29))]
        Dataset.from_dict({"prompt": prompts, "label": [9.0] * 30}).save_to_disk(tmp_path / "rows")
        return tmp_path

    @pytest.fixture
    def log(self, tmp_path, monkeypatch):
        log = EncodingLog(tmp_path / "log")
        log.start(monkeypatch.setattr)
        return log

    @pytest.mark.parametrize("num_proc", [None, 2])
    def test_a_second_run_takes_the_cache(self, folder, log, num_proc):
        first = encode_from_disk(folder, num_proc)
        assert log.rows == 30
        assert list(encode_from_disk(folder, num_proc)) == list(first)
        assert log.rows == 30

    def test_a_second_process_takes_the_cache(self, folder, log):
        encode_from_disk(folder)
        code = (
            "import sys; from pathlib import Path; from support.encoding import EncodingLog, encode_from_disk; "
            "folder = Path(sys.argv[1]); EncodingLog(folder / 'log').start(); print(len(encode_from_disk(folder)))"
        )
        tests = str(Path(__file__).resolve().parents[1])
        second = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, "PYTHONPATH": tests},
            capture_output=True,
            text=True,
            check=True,
        )
        assert second.stdout.split() == ["30"]
        assert log.rows == 30

    def test_what_was_wrong_with_the_rows_is_said_again(self, folder, log, caplog):
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="raft_peft"):
                encode_from_disk(folder)
            assert "1 of the 30 prompts of the train dataset are longer than max_length=16" in caplog.text
            assert "30 of the 30 labels of the train dataset (9 to 9) lie outside" in caplog.text
        assert log.rows == 30

    def test_other_rows_are_encoded(self, folder, log):
        encode_from_disk(folder)
        Dataset.from_dict({"prompt": ["item 1:"], "label": [1.0]}).save_to_disk(folder / "rows")
        assert len(encode_from_disk(folder)) == 1
        assert log.rows == 31


class TestFingerprint:
    """The name of the cache of the encoded rows."""

    dataset = Dataset.from_dict({"prompt": ["item 1:", "item 2:"], "label": [1.0, 2.0], "stars": [3.0, 4.0]})

    def of(self, tokenizer, grid=range(5), *, encoder=None, name="train", **options):
        settings = {key: options.pop(key) for key in ("separator", "max_length", "number_end") if key in options}
        encoder = PromptEncoder(tokenizer, NumberGrid(grid), **settings) if encoder is None else encoder
        options = {"label_column": "label", "method": METHODS["raft"], **options}
        return encode_dataset(self.dataset, name, encoder, **options)._fingerprint

    @pytest.mark.parametrize(
        "other",
        [
            {"grid": range(6)},
            {"grid": {value: f"0{value}" for value in range(5)}},
            {"separator": "\n"},
            {"max_length": 4},
            {"number_end": NumberEnd(text=".")},
            {"label_column": "stars"},
            {"method": METHODS["ce"]},
            {"method": METHODS["log_loss"]},
        ],
        ids="".join,
    )
    def test_what_decides_the_encoded_rows_is_in_it(self, tokenizer, other):
        assert self.of(tokenizer, **other) != self.of(tokenizer)

    @pytest.mark.parametrize(
        "other",
        [{"name": "eval"}, {"renormalize": True}, {"require_label": False}, {"method": METHODS["mbr"]}],
        ids="".join,
    )
    def test_what_does_not_is_not(self, tokenizer, other):
        assert self.of(tokenizer, **other) == self.of(tokenizer)

    def test_another_tokenizer_has_another(self, tokenizer):
        before = self.of(tokenizer)
        tokenizer.add_tokens(["item 1"])
        assert self.of(tokenizer) != before

    def test_it_does_not_change_with_use(self, tokenizer):
        used = PromptEncoder(tokenizer, NumberGrid(range(5)))
        before = self.of(tokenizer)
        used.encode([{"prompt": f"The item number {item} is"} for item in range(50)])
        tokenizer(["one", "and two"], padding=True, truncation=True, max_length=3)
        assert self.of(tokenizer, encoder=used) == before

    @pytest.mark.parametrize("count", [10, 3000])
    def test_the_function_that_is_pickled_holds_no_rows(self, tokenizer, monkeypatch, count):
        pickled, map_rows = [], Dataset.map

        def watched(dataset, function, **options):
            encoded = map_rows(dataset, function, **options)
            pickled.append(dumps(function))  # once it has been used
            return encoded

        monkeypatch.setattr(Dataset, "map", watched)
        rows = [{"prompt": f"item {item} is", "label": 1.0} for item in range(count)]
        encode(Dataset.from_list(rows), PromptEncoder(tokenizer, NumberGrid(range(5))))
        assert len(pickled[0]) < len(dumps(tokenizer)) + 1_000

    def test_other_code_has_another(self, tmp_path, monkeypatch):
        for package in ("raft_peft.grid", "raft_peft.data"):
            shutil.copytree(str(resources.files(package)), tmp_path / package)
        monkeypatch.setattr(resources, "files", lambda package: tmp_path / package)
        assert _hash_of_source.__wrapped__() == _hash_of_source()
        with (tmp_path / "raft_peft.data" / "prompts.py").open("a") as file:
            file.write("# changed")
        assert _hash_of_source.__wrapped__() != _hash_of_source()
