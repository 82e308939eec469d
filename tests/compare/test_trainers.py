"""What the settings of a comparison come to in the trainers of its runs."""

import pytest
import torch
from conftest import make_tiny_llama
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertModel, TrainerCallback

from raft_peft.compare import CompareSettings
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.run import Run
from raft_peft.compare.trainers import trainer_of

ROWS = Dataset.from_list(
    [{"prompt": f"Rate the item {index}: the score is", "label": float(index % 5)} for index in range(4)]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, byte_level):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(byte_level).save_pretrained(folder)
    byte_level.save_pretrained(folder)
    return str(folder)


def trainer(model, folder, method="raft", **options):
    settings = CompareSettings(model, str(folder), task="stsb", methods=f"{method};", **options)
    grid = ComparedMethod.parse(method).grid or [(float(y), str(y)) for y in range(5)]
    told = Run(vars(settings), list(grid), "", method, seed=0, learning_rate=1e-3)
    data = DatasetDict(train=ROWS, validation=ROWS, test=ROWS)
    return trainer_of(told, data, folder, TrainerCallback())[0]


def test_batch_and_memory_are_settings(model, tmp_path):
    options = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "padding_free": True,
        "eval_batch_size": 5,
    }
    args = trainer(model, tmp_path, **options).args
    assert {name: getattr(args, name) for name in options if name != "eval_batch_size"} == {
        name: value for name, value in options.items() if name != "eval_batch_size"
    }
    assert args.per_device_eval_batch_size == 5
    # Rows that end in a text behind them cannot be laid end to end.
    assert not trainer(model, tmp_path, "ce", **options).args.padding_free


def test_time_and_memory_compare_by_default(model, tmp_path, byte_level):
    """No method is run in another way than the others; with checkpointing, encoders have it, too."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(byte_level), **sizes)).save_pretrained(tmp_path / "encoder")
    byte_level.save_pretrained(tmp_path / "encoder")
    for method in ("raft", "logits_mlp", "ce"):
        args = trainer(model, tmp_path, method).args
        assert (args.gradient_checkpointing, args.padding_free) == (False, False)
    for checkpointing in (False, True):
        options = {"encoder": str(tmp_path / "encoder"), "gradient_checkpointing": checkpointing}
        encoder = trainer(model, tmp_path, "encoder_cls", **options).model.encoder
        assert encoder.is_gradient_checkpointing is checkpointing


def test_four_bits_are_under_lora(model, tmp_path, monkeypatch):
    asked = {}

    class SeenError(Exception):
        pass

    def note(*_, quantization_config, peft_config, **__):
        asked.update(bits4=quantization_config.load_in_4bit, r=peft_config.r)
        raise SeenError

    monkeypatch.setattr("raft_peft.compare.trainers.RegressionAwareTrainer", note)
    with pytest.raises(SeenError):
        trainer(model, tmp_path, load_in_4bit=True)
    assert asked == {"bits4": True, "r": 16}


def test_a_method_has_its_own_grid(model, tmp_path):
    made = trainer(model, tmp_path, "raft:grid=1=Jan.,9=May")
    assert (made.grid.values, made.grid.texts) == ((1, 9), ("Jan.", "May"))


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_numbers_have_tokens_of_their_own(recipe, model, tmp_path, byte_level):
    """The row of "2.5" starts as the row of its first digit, or as the mean of its three tokens."""
    for init in ("first", "average"):
        made = trainer(model, tmp_path, f"raft:grid=0..5..0.5:number_tokens={init}", recipe=recipe)
        assert made.grid.texts[5] == "2.5"
        rows = made.model.get_input_embeddings().weight
        pieces = byte_level("2.5", add_special_tokens=False)["input_ids"]
        assert len(pieces) == 3
        expected = rows[pieces[0]] if init == "first" else rows[pieces].mean(0)
        torch.testing.assert_close(rows[made.model.number_token_ids["2.5"]], expected)
    whole = trainer(model, tmp_path, "raft:grid=1..5:number_tokens=zero", recipe=recipe)
    assert whole.grid.texts == ("1.0", "2.0", "3.0", "4.0", "5.0")
    assert (whole.model.get_input_embeddings().weight[whole.model.number_token_ids["3.0"]] == 0).all()


def test_token_rows_at_random_are_those_of_the_grid_alone(model, tmp_path):
    as_it_is = trainer(model, tmp_path, "raft:grid=3,5", recipe="full").model
    at_random = trainer(model, tmp_path, "raft:grid=3,5:token_rows=random", recipe="full")
    ids = [token_id for ids in at_random.train_dataset[0]["grid_token_ids"] for token_id in ids]
    for matrix in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(one, matrix)().weight for one in (as_it_is, at_random.model))
        changed = (before != after).any(1).nonzero().flatten().tolist()
        assert changed == sorted(ids)
        assert after[ids].std().item() == pytest.approx(before.std().item(), rel=0.5)
