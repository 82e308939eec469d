import pandas
import pytest
from datasets import Dataset, DatasetDict
from support.training import GRID, config

from raft_peft import NumberGrid
from raft_peft.training.datasets import RunDatasets, check_not_empty


@pytest.fixture
def datasets(tokenizer, tmp_path):
    found = RunDatasets(NumberGrid(GRID), config(tmp_path))
    found.open(tokenizer, tokenizer)
    return found


def test_a_dataset_is_encoded_once(datasets, tokenizer, rows):
    encoded = datasets.encode(Dataset.from_list(rows), "train")
    assert encoded.column_names == ["input_ids", "grid_token_ids", "label"]
    assert datasets.encode(encoded, "eval") is encoded
    encoder = datasets.encoder
    datasets.open(tokenizer, tokenizer)
    assert datasets.encoder is encoder


def test_what_the_first_rows_tell_is_kept(datasets, tokenizer, rows):
    datasets.encode(Dataset.from_list(rows), "train")
    assert datasets.grid_token_ids == tuple((tokenizer.convert_tokens_to_ids(f"Ġ{number}"),) for number in GRID)
    assert datasets.prompt_shape == "Rate ... from 0 to 4, the score is"
    letters = [{**row, "prompt": f"Of a letter: {row['prompt']}"} for row in rows]
    datasets.encode(Dataset.from_list(letters), "eval")
    assert datasets.prompt_shape == "Rate ... from 0 to 4, the score is"


def test_the_stand_in_passes_and_tells_nothing(datasets):
    assert datasets.encode(datasets.stand_in, "train") is datasets.stand_in
    assert datasets.grid_token_ids is None
    assert datasets.prompt_shape is None


def test_rows_encoded_for_another_trainer_are_refused(datasets, rows, tokenizer, tmp_path):
    other = RunDatasets(NumberGrid([0, 1]), config(tmp_path))
    other.open(tokenizer, tokenizer)
    encoded = other.encode(Dataset.from_list([{**rows[0], "label": 1.0}]), "train")
    with pytest.raises(ValueError, match="was encoded by another trainer"):
        datasets.encode(encoded, "train")


def test_rows_that_are_no_dataset_yet(datasets, rows):
    expected = list(datasets.encode(Dataset.from_list(rows), "test"))
    for holder in (pandas.DataFrame(rows), rows, Dataset.from_list(rows).with_format("torch")):
        assert list(datasets.encode(holder, "test")) == expected


def test_a_stream_of_several_readers_is_not_evaluated(datasets, tokenizer, tmp_path, rows):
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=2)
    several = RunDatasets(NumberGrid(GRID), config(tmp_path, dataloader_num_workers=2))
    several.open(tokenizer, tokenizer)
    with pytest.raises(ValueError, match=r"The test dataset is a stream .* 2 workers of the data loader read at once"):
        several.encode(stream, "test")
    several.encode(stream, "train")
    datasets.encode(stream, "test")


def test_rows_that_the_model_cannot_take(datasets, tiny_llama, rows):
    encoded = datasets.encode(Dataset.from_list(rows), "train")
    datasets.check_fits(tiny_llama)
    tiny_llama.config.max_position_embeddings = 8
    with pytest.raises(ValueError, match=r"row \d: the prompt with its number has .* and the model has 8 positions"):
        datasets.check_fits(tiny_llama)
    assert len(encoded)
    with pytest.raises(ValueError, match="the model has 8 positions"):
        datasets.encode(Dataset.from_list(rows), "eval")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (pandas.DataFrame({"prompt": ["a"]}), "is a DataFrame, .*Dataset.from_pandas"),
        ([{"prompt": "a"}], r"is a list, .*Dataset.from_list\(\["),
        (DatasetDict({"train": Dataset.from_dict({"prompt": ["a"]})}), r"is a DatasetDict.*dataset\['train'\]"),
    ],
)
def test_what_is_no_dataset_is_named(train, said):
    with pytest.raises(ValueError, match=f"The train dataset {said}"):
        check_not_empty(train, None)


def test_the_empty_dataset_is_named(rows):
    full, empty = Dataset.from_list(rows), Dataset.from_dict({"prompt": []})
    check_not_empty(None, None)
    check_not_empty(full, {"dev": full, "stream": full.to_iterable_dataset()})
    with pytest.raises(ValueError, match="train dataset is empty"):
        check_not_empty(empty, full)
    with pytest.raises(ValueError, match="dev dataset is empty"):
        check_not_empty(full, {"dev": empty})
