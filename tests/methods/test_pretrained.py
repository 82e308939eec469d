"""What a name opens is a whole language model, or an adapter on the base that it had; or it is said what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.training import GRID, lora, make
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from raft_peft import RegressionPredictor, merge_and_save
from raft_peft.methods.pretrained import with_dtype


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def saved_adapter(base, tokenizer, folder, rows):
    trainer = make(base, tokenizer, folder, rows, options={"max_steps": 1}, peft_config=lora())
    trainer.train()
    trainer.save_model()


def other_models(causal):
    """Models without an output over the vocabulary that predicts the next token, by what is said of each."""
    size = {"vocab_size": causal.config.vocab_size, "num_layers": 1, "num_heads": 2}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tied = type(causal.config)(**{**causal.config.to_dict(), "tie_word_embeddings": True})
    return {
        "encoder-decoder model .T5ForConditionalGeneration": T5ForConditionalGeneration(
            T5Config(**size, d_model=32, d_ff=64, d_kv=16, decoder_start_token_id=0)
        ),
        "a LlamaForSequenceClassification, which has no output": LlamaForSequenceClassification(causal.config),
        # Its output matrix is the embedding, so that none of its weights is missing.
        "a LlamaForSequenceClassification, which has": LlamaForSequenceClassification(tied),
        "a LlamaModel, which has no output": causal.model,
        "a BertForMaskedLM, which has no output": BertForMaskedLM(BertConfig(vocab_size=420, **text)),
    }


@pytest.mark.parametrize("as_base", [False, True], ids=["itself", "as the base of an adapter"])
def test_models_that_do_not_predict_the_next_token(base, tiny_llama, tokenizer, tmp_path, rows, as_base):
    saved_adapter(base, tokenizer, tmp_path / "run", rows)
    for number, (said, model) in enumerate(other_models(tiny_llama).items()):
        folder = name = str(tmp_path / f"other-{number}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if as_base:
            name = str(tmp_path / "run")
            path = tmp_path / "run" / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": folder}))
        for use in (
            lambda name=name: RegressionPredictor.from_pretrained(name, GRID),
            lambda name=name: make(name, None, tmp_path / "out", rows),
        ):
            with pytest.raises(ValueError, match=rf"{folder}.* holds an? {said.removeprefix('a ')}"):
                use()


def test_open_models_that_do_not_predict_the_next_token(tiny_llama, tokenizer, tmp_path, rows):
    refusals = {
        0: "is an encoder-decoder model",
        1: "has no output over the vocabulary",
        3: "has no output over the vocabulary",
        4: "takes no `logits_to_keep`",
    }
    models = list(other_models(tiny_llama).values())
    for number, said in refusals.items():
        with pytest.raises(ValueError, match=said):
            make(models[number], tokenizer, tmp_path, rows)
        with pytest.raises(ValueError, match=said):
            RegressionPredictor(models[number], tokenizer, GRID)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_saved_nowhere_are_not_made_up(base, tokenizer, tmp_path, rows, name):
    saved_adapter(base, tokenizer, tmp_path / "run", rows)
    path = f"{base}/model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    for use in (
        lambda: RegressionPredictor.from_pretrained(base, GRID),
        lambda: RegressionPredictor.from_pretrained(tmp_path / "run"),
        lambda: make(base, None, tmp_path / "out", rows),
    ):
        with pytest.raises(ValueError, match=rf"base' does not hold all weights of LlamaForCausalLM: {name} would be"):
            use()


def test_a_folder_without_a_tokenizer(base, tmp_path, rows):
    uses = (
        lambda: RegressionPredictor.from_pretrained(base, GRID),
        lambda: make(base, None, tmp_path / "out", rows),
    )
    path = tmp_path / "base" / "tokenizer.json"
    path.write_text("{")
    for use in uses:
        with pytest.raises(ValueError, match=rf"The tokenizer of '{base}' cannot be opened: Expecting property name"):
            use()
    path.unlink()
    for use in uses:
        with pytest.raises(ValueError, match=rf"^'{base}' has no tokenizer: it holds none of tokenizer.json, .* Copy"):
            use()


def test_a_configuration_that_names_no_architecture(base, tokenizer, tmp_path, rows):
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config))
    assert type(make(base, None, tmp_path / "out", rows).model).__name__ == "LlamaForCausalLM"
    RegressionPredictor.from_pretrained(base, GRID)


class TestMovedBase:
    def test_the_error_names_adapter_path_and_cure(self, base, tokenizer, tmp_path, rows):
        saved_adapter(base, tokenizer, tmp_path / "run", rows)
        shutil.move(base, f"{base}-moved")
        said = rf"adapter in '.*run' is not where .* no folder '{base}'\. Move it back, or write .*adapter_config.json"
        for use in (
            lambda: RegressionPredictor.from_pretrained(tmp_path / "run"),
            lambda: merge_and_save(tmp_path / "run", tmp_path / "merged"),
            lambda: make(str(tmp_path / "run"), None, tmp_path / "out", rows),
        ):
            with pytest.raises(FileNotFoundError, match=said):
                use()

    def test_a_relative_one_is_not_looked_up_on_the_hub(self, base, tokenizer, tmp_path, rows, monkeypatch):
        (tmp_path / "there" / "models").mkdir(parents=True)
        shutil.move(base, tmp_path / "there" / "models" / "stars")
        monkeypatch.chdir(tmp_path / "there")
        saved_adapter("models/stars", tokenizer, tmp_path / "run", rows)
        RegressionPredictor.from_pretrained(tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        asked = []
        monkeypatch.setattr("transformers.utils.hub.hf_hub_download", lambda *a, **b: asked.append(a))
        with pytest.raises(FileNotFoundError, match=r"no folder 'models/stars', seen from the working directory"):
            RegressionPredictor.from_pretrained(tmp_path / "run")
        assert asked == []

    def test_a_repository_that_is_not_found_is_told_of_the_adapter(self, base, tokenizer, tmp_path, rows):
        saved_adapter(base, tokenizer, tmp_path / "run", rows)
        path = tmp_path / "run" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "nobody/nothing"}))
        with pytest.raises(
            OSError, match=r"(?s)base model .nobody/nothing. of the adapter in .*run.*adapter_config.json"
        ):
            RegressionPredictor.from_pretrained(tmp_path / "run", local_files_only=True)


class TestTorchDtype:
    def test_it_is_dtype(self):
        assert with_dtype({"torch_dtype": "bfloat16", "token": "x"}) == {"dtype": "bfloat16", "token": "x"}
        assert with_dtype({"torch_dtype": torch.float16, "dtype": "float16"}) == {"dtype": torch.float16}
        assert with_dtype({"torch_dtype": None, "dtype": "float16"}) == {"dtype": "float16"}
        with pytest.raises(ValueError, match=r"dtype=float32 and torch_dtype=float16 are two names"):
            with_dtype({"torch_dtype": torch.float16, "dtype": "float32"})

    def test_in_training_and_prediction(self, base, tokenizer, tmp_path, rows):
        saved_adapter(base, tokenizer, tmp_path / "run", rows)
        assert RegressionPredictor.from_pretrained(tmp_path / "run").model.dtype == torch.float32
        found = RegressionPredictor.from_pretrained(tmp_path / "run", torch_dtype="bfloat16")
        assert found.model.dtype == torch.bfloat16
        for init in ("pretrained", "random"):
            options = {"init": init, "model_init_kwargs": {"torch_dtype": "bfloat16"}}
            trainer = make(base, tokenizer, tmp_path / "out", options=options)
            assert trainer.model.dtype == torch.bfloat16
            assert trainer.args.model_init_kwargs == {"torch_dtype": "bfloat16"}

    def test_in_merging(self, base, tokenizer, tmp_path, rows):
        saved_adapter(base, tokenizer, tmp_path / "run", rows)
        merge_and_save(tmp_path / "run", tmp_path / "merged", torch_dtype=torch.bfloat16, tolerance=1)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
