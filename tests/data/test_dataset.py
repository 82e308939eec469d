import logging
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from importlib import resources
from pathlib import Path

import pandas
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from datasets.utils._dill import dumps
from support.encoding import EncodingLog, encode_from_disk

from raft_peft import NumberGrid
from raft_peft.data.dataset import check_read_once, encode_dataset, hash_of_source, spread_rows
from raft_peft.data.limits import ModelLimits
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


def test_integer_labels_become_floats(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1}])
    assert encode(dataset, encoder).features["label"] == Value("float64")


def classes(names, labels=(0, 1)):
    features = Features({"prompt": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"prompt": ["a"] * len(labels), "label": list(labels)}, features=features)


def test_classes_named_by_numbers_are_these_numbers(encoder):
    assert list(encode(classes(["3", "1.5"], [0, 1, 0]), encoder)["label"]) == [3, 1.5, 3]
    stream = classes(["3", "1.5"]).to_iterable_dataset()
    assert [row["label"] for row in encode(stream, encoder)] == [3, 1.5]


def test_classes_named_as_the_grid_writes_its_numbers(tokenizer):
    encoder = PromptEncoder(tokenizer, NumberGrid({7: "A", 9: "B"}))
    assert list(encode(classes(["B", "A"]), encoder)["label"]) == [9, 7]


def test_classes_with_other_names_are_refused(encoder):
    with pytest.raises(ValueError, match=r"classes named '1 star', '2 stars'.*cast_column\('label'"):
        encode(classes(["1 star", "2 stars"]), encoder)


def test_classes_that_are_kept_secret_are_no_labels(encoder):
    secret = classes(["bad", "good"], [-1, -1])
    assert "label" not in encode(secret, encoder, require_label=False).column_names
    with pytest.raises(ValueError, match="row 0: the label is missing"):
        encode(classes(["1", "2"], [-1, 1]), encoder)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_labels_are_meant_as_their_column_writes_them(encoder, dtype):
    features = Features({"prompt": Value("string"), "label": Value(dtype)})
    written = [3.8, 0.0, 2.2, 0.1234]
    dataset = Dataset.from_dict({"prompt": ["a"] * 4, "label": written}, features=features)
    encoded = encode(dataset, encoder, method=METHODS["ce"])
    assert list(encoded["label"]) == written
    texts = [encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in encoded["target_ids"]]
    assert texts == ["3.8", "0", "2.2", "0.1234"]


def test_decimals_are_numbers(encoder):
    dataset = Dataset.from_dict({"prompt": ["a", "b"], "label": [Decimal("1.5"), Decimal("2.25")]})
    assert list(encode(dataset, encoder)["label"]) == [1.5, 2.25]


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
    assert "1 of the 2 prompts of the train dataset are longer than `max_length=16`" in caplog.text


@pytest.mark.parametrize(("renormalize", "outside"), [(False, 2), (True, 2)])
def test_labels_out_of_reach_are_counted(encoder, caplog, renormalize, outside):
    dataset = Dataset.from_list([{"prompt": "a", "label": label} for label in (-1.0, 0.0, 4.0, 7.5)])
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder, renormalize=renormalize)
    assert f"{outside} of the 4 labels of the train dataset (-1 to 7.5) lie outside" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "1 of the 2 labels of the train dataset (0 to 1) lie outside the grid's own range, 1 to 2"),
        ({"renormalize": True}, "(0 to 1) lie outside what this grid can express, 1 to 2"),
        ({"method": METHODS["pooled"]}, ""),
    ],
    ids=["0 is within reach", "renormalized", "no grid"],
)
def test_labels_from_0_for_a_grid_from_1(tokenizer, caplog, options, said):
    dataset = Dataset.from_list([{"prompt": "a", "label": 0.0}, {"prompt": "a", "label": 1.0}])
    with caplog.at_level(logging.WARNING):
        encode(dataset, PromptEncoder(tokenizer, NumberGrid([1, 2])), **options)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_label_column_that_does_not_exist(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "completion": "3"}])
    with pytest.raises(ValueError, match=r"columns \['completion', 'prompt'\], and no label in 'stars'"):
        encode(dataset, encoder, label_column="stars")
    assert "label" not in encode(dataset, encoder, label_column="stars", require_label=False).column_names


@pytest.mark.parametrize("as_stream", [False, True])
def test_the_first_label_does_not_decide_for_all(encoder, as_stream):
    for labels, message in (([None, 2.0], "row 1: the label is 2.0"), ([2.0, None], "row 1: the label is missing")):
        dataset = Dataset.from_dict({"prompt": ["a", "b"], "label": labels})
        with pytest.raises(ValueError, match=message):
            list(encode(dataset.to_iterable_dataset() if as_stream else dataset, encoder, require_label=False))


FORMATS = ["torch", "numpy", "pandas", "arrow"]


class TestFormats:
    rows = ({"prompt": "the item 1:", "label": 1.5}, {"prompt": "the item 2 is", "label": 3.0})

    @pytest.fixture
    def plain(self, encoder):
        return list(encode(Dataset.from_list(list(self.rows)), encoder))

    @pytest.mark.parametrize("form", FORMATS)
    def test_datasets(self, encoder, plain, form):
        dataset = Dataset.from_list(list(self.rows)).with_format(form)
        assert list(encode(dataset, encoder)) == plain
        assert list(spread_rows(dataset, 2)) == list(self.rows)

    @pytest.mark.parametrize("form", FORMATS)
    def test_streams(self, encoder, plain, form):
        stream = Dataset.from_list(list(self.rows)).to_iterable_dataset().with_format(form)
        assert list(encode(stream, encoder)) == plain

    @pytest.mark.parametrize("form", FORMATS)
    def test_tokenized(self, encoder, plain, form):
        ids = [{"input_ids": encoder.tokenizer(row["prompt"]).input_ids, "label": row["label"]} for row in self.rows]
        assert list(encode(Dataset.from_list(ids).with_format(form), encoder)) == plain

    def test_transforms(self, encoder, plain):
        renamed = Dataset.from_list([{"text": row["prompt"], "stars": row["label"]} for row in self.rows])
        dataset = renamed.with_transform(lambda batch: {"prompt": batch["text"], "label": batch["stars"]})
        assert list(encode(dataset, encoder)) == plain

    def test_columns_that_a_format_hides_are_hidden(self, encoder):
        dataset = Dataset.from_list(list(self.rows)).with_format("torch", columns=["prompt"])
        with pytest.raises(ValueError, match="no label in 'label'"):
            encode(dataset, encoder)

    def test_other_holders_of_rows(self, encoder, plain):
        rows = list(self.rows)
        for holder in (rows, pandas.DataFrame(rows), pyarrow.Table.from_pylist(rows), iter(rows)):
            assert list(encode(holder, encoder)) == plain


class TestStreams:
    def test_are_refused_where_rows_would_count_twice(self):
        stream = Dataset.from_dict({"prompt": ["a"] * 4}).to_iterable_dataset(num_shards=2)
        with pytest.raises(ValueError, match=r"The dev dataset is a stream.* 2 processes fill .*Dataset.from_list"):
            check_read_once(stream, "dev", processes=2, workers=0)

    def test_are_refused_where_the_order_would_be_another(self):
        rows = Dataset.from_dict({"prompt": ["a"] * 4})
        with pytest.raises(ValueError, match="2 shards, which 2 workers"):
            check_read_once(rows.to_iterable_dataset(num_shards=2), "dev", processes=1, workers=2)
        check_read_once(rows.to_iterable_dataset(), "dev", processes=1, workers=2)
        check_read_once(rows.to_iterable_dataset(num_shards=2), "dev", processes=1, workers=1)
        check_read_once(rows, "dev", processes=2, workers=2)


class TestRemarks:
    def test_padding_that_is_taken_off_is_said(self, encoder, caplog):
        ids = encoder.tokenizer("the item 1:").input_ids
        rows = [{"input_ids": [*ids, encoder.tokenizer.eos_token_id], "label": 1.0}, {"input_ids": ids, "label": 1.0}]
        with caplog.at_level(logging.WARNING):
            encoded = encode(Dataset.from_list(rows), encoder)
        assert encoded[0]["input_ids"] == encoded[1]["input_ids"] == ids
        assert "1 of the 2 prompts of the train dataset are input_ids with padding, or with an end" in caplog.text

    @pytest.mark.parametrize("as_stream", [False, True])
    def test_open_thoughts_are_said(self, encoder, caplog, as_stream):
        rows = [{"prompt": "Rate it.\n<think>\n", "label": 1.0}, {"prompt": "Rate it:", "label": 1.0}]
        dataset = Dataset.from_list(rows)
        with caplog.at_level(logging.WARNING):
            list(encode(dataset.to_iterable_dataset() if as_stream else dataset, encoder))
        assert "1 of the 2 prompts of the train dataset end inside an open thought" in caplog.text
        assert 'chat_template_kwargs={"enable_thinking": False}' in caplog.text


@pytest.mark.parametrize("as_stream", [False, True])
def test_rows_that_the_model_cannot_take(encoder, as_stream):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1.0}, {"prompt": "the item 1, the item 2:", "label": 1.0}])
    dataset = dataset.to_iterable_dataset() if as_stream else dataset
    with pytest.raises(ValueError, match=r"row 1: the prompt with its number has \d+ tokens, and the model has 3 pos"):
        list(encode(dataset, encoder, limits=ModelLimits(positions=3)))
    with pytest.raises(ValueError, match=r"row 0: the token id \d+ is beyond the model's 5 embeddings"):
        list(encode(dataset, encoder, limits=ModelLimits(tokens=5)))
    assert list(encode(dataset, encoder, limits=ModelLimits(positions=100, tokens=1000)))


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
            assert "1 of the 30 prompts of the train dataset are longer than `max_length=16`" in caplog.text
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
        assert hash_of_source.__wrapped__() == hash_of_source()
        with (tmp_path / "raft_peft.data" / "prompts.py").open("a") as file:
            file.write("# changed")
        assert hash_of_source.__wrapped__() != hash_of_source()


class TestRatings:
    ROWS = ({"prompt": "a", "label": [1, 2, 2, 3]}, {"prompt": "b", "label": [4]})
    SHARES = ({"prompt": "a", "label": {"1": 0.5, "2": 0.5}}, {"prompt": "b", "label": {"4": 1.0}})

    def test_the_label_is_the_mean_beside_the_ratings(self, encoder):
        for rows, shares, mean in ((self.ROWS, [0.25, 0.5, 0.25], 2), (self.SHARES, [0.5, 0.5], 1.5)):
            encoded = encode(Dataset.from_list(list(rows)), encoder)
            assert list(encoded["label"]) == [mean, 4]
            assert list(encoded["rating_values"]) == [[1, 2, 3][: len(shares)], [4]]
            assert list(encoded["rating_shares"]) == [shares, [1]]

    def test_rows_without_ratings_do_not_grow(self, encoder):
        for row in ({"label": 1}, {"completion": "1"}):
            encoded = encode(Dataset.from_list([{"prompt": "a", **row}]), encoder)
            assert set(encoded.column_names) == {"input_ids", "grid_token_ids", "label"}

    def test_numbers_beside_ratings_in_a_list_and_in_a_stream(self, encoder):
        rows = [{"prompt": "c", "label": 3}, *self.ROWS]
        assert list(encode(rows, encoder)["rating_values"]) == [[3], [1, 2, 3], [4]]
        stream = IterableDataset.from_generator(lambda: iter(rows))
        assert [row["rating_values"] for row in encode(stream, encoder)] == [None, [1, 2, 3], [4]]

    def test_ratings_outside_the_grid(self, encoder, caplog):
        rows = Dataset.from_list([*self.ROWS, {"prompt": "c", "label": [3, 5]}])
        encode(rows, encoder)
        assert "1 of the 3 rows of ratings of the train dataset (1 to 5) have some outside" in caplog.text
        with pytest.raises(ValueError, match="row 2: the rating 5 lies outside 0 to 4, the range of the grid"):
            encode(rows, encoder, labels_within_grid=True)

    def test_a_weight_is_the_number_of_raters(self, encoder):
        assert list(encode(Dataset.from_list(list(self.ROWS)), encoder, weight_by_ratings=True)["weight"]) == [4, 1]
        with pytest.raises(ValueError, match=r"(?s)row 0: the label is a mapping of shares.*row 1: "):
            encode(Dataset.from_list(list(self.SHARES)), encoder, weight_by_ratings=True)

    def test_a_weight_needs_ratings(self, encoder):
        with pytest.raises(ValueError, match="no row of the train dataset has ratings"):
            encode(Dataset.from_list([{"prompt": "a", "label": 1}]), encoder, weight_by_ratings=True)

    def test_a_method_of_text_writes_the_mean_in_few_digits(self, encoder):
        encoded = encode([{"prompt": "a", "label": [1, 2, 2]}], encoder, method=METHODS["ce"])
        assert encoder.tokenizer.decode(encoded["target_ids"][0], skip_special_tokens=True).strip() == "1.67"
        assert list(encoded["label"]) == [5 / 3]
