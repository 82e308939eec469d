"""An adapter knows the base model that it was trained on, however that is opened, and no other."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from support.training import lora, make
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from raft_peft import RegressionPredictor, add_number_tokens, merge_and_save
from raft_peft.methods import base_fingerprint
from raft_peft.methods.base_fingerprint import note_base
from raft_peft.methods.saved_folder import RaftConfig

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
INT8 = BitsAndBytesConfig(load_in_8bit=True)


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def opened(base, **options):
    return AutoModelForCausalLM.from_pretrained(base, **{"dtype": torch.float32, **options})


def noted(model, *, just_opened=False):
    note_base(model, {}, just_opened=just_opened)
    return model.adapted_base.fingerprint


def train(model, tokenizer, folder, rows, **arguments):
    options = {"max_steps": 2, "learning_rate": 0.01, "renormalize": True}
    trainer = make(model, tokenizer, folder, rows, options=options, **{"peft_config": lora(), **arguments})
    trainer.train()
    trainer.save_model()
    return trainer


def move(base, name, by=0.1):
    """Change one matrix of a saved model."""
    path = f"{base}/model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + by
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16}, {"quantization_config": NF4}, {"quantization_config": INT8}]
)
def test_the_fingerprint_is_that_of_the_files_however_they_are_opened(base, options, caplog):
    expected = noted(opened(base), just_opened=True)
    assert noted(opened(base, **options)) == expected
    assert caplog.text == ""
    assert {name.split(".")[-2] for name in expected} >= {"q_proj", "down_proj", "embed_tokens", "lm_head", "norm"}


def test_weights_that_were_rounded_to_bf16_and_sharded_are_the_same(base, tmp_path):
    opened(base).to(torch.bfloat16).save_pretrained(tmp_path / "rounded", max_shard_size="20KB")
    assert len(list((tmp_path / "rounded").glob("*.safetensors"))) > 1
    assert noted(opened(str(tmp_path / "rounded"))) == noted(opened(base))


def test_weights_that_torch_pickled_are_the_same(base, tmp_path):
    expected = noted(opened(base))
    torch.save(load_file(f"{base}/model.safetensors"), f"{base}/pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    assert noted(opened(base)) == expected


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.up_proj.weight"])
def test_one_changed_matrix_is_another_base(base, name):
    before = noted(opened(base))
    move(base, name)
    after = noted(opened(base))
    assert {tensor for tensor in before if before[tensor] != after[tensor]} == {name}


def test_a_large_model_is_known_by_few_tensors():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.w1" for layer in range(60) for expert in range(128)]
    shards = dict.fromkeys([*names, "model.embed_tokens.weight", "visual.blocks.3.qkv.weight"], "one")
    telling = base_fingerprint._telling(shards)
    # The first, the middle and the last, of layers and of experts.
    assert len(telling) == 3 * 3 + 2
    assert {"model.layers.30.mlp.experts.64.w1", "model.layers.59.mlp.experts.127.w1"} <= set(telling)


@pytest.mark.parametrize("quantization", [None, NF4], ids=["dense", "nf4"])
def test_a_base_that_was_written_to_since_is_refused(base, tokenizer, tmp_path, rows, quantization):
    train(base, tokenizer, tmp_path / "run", rows, quantization_config=quantization)
    RegressionPredictor.from_pretrained(tmp_path / "run")
    move(base, "model.layers.1.self_attn.q_proj.weight", by=0.01)
    for use in (
        lambda: RegressionPredictor.from_pretrained(tmp_path / "run"),
        lambda: RegressionPredictor.from_pretrained(tmp_path / "run", dtype="bfloat16", quantization_config=False),
        lambda: merge_and_save(tmp_path / "run", tmp_path / "merged"),
        lambda: make(str(tmp_path / "run"), None, tmp_path / "more", rows),
    ):
        with pytest.raises(ValueError, match=r"on other weights than its base.*1 differ.*q_proj.*adapter_conf"):
            use()
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("how", ["merged", "trained", "wrapped"])
def test_a_model_that_was_changed_in_memory_is_said_and_refused(base, tokenizer, tmp_path, rows, how, caplog):
    if how == "merged":
        model = train(base, tokenizer, tmp_path / "first", rows).model.merge_and_unload()
    else:
        model = train(base, tokenizer, tmp_path / "first", rows, peft_config=None).model
    adapter = lora()
    if how == "wrapped":
        model, adapter = get_peft_model(model, lora(task_type="CAUSAL_LM")), None
    with caplog.at_level(logging.WARNING):
        train(model, tokenizer, tmp_path / "second", rows, peft_config=adapter)
    assert f"is not what its name {base!r} holds" in caplog.text
    assert "model.save_pretrained(folder)" in caplog.text
    with pytest.raises(ValueError, match="trained on a model that had been changed"):
        RegressionPredictor.from_pretrained(tmp_path / "second")


def test_saving_the_changed_model_first_is_the_cure(base, tokenizer, tmp_path, rows, caplog):
    model = train(base, tokenizer, tmp_path / "first", rows).model.merge_and_unload()
    model.save_pretrained(tmp_path / "changed")
    caplog.clear()
    trainer = train(opened(str(tmp_path / "changed")), tokenizer, tmp_path / "second", rows)
    assert "is not what its name" not in caplog.text
    prompts = [row["prompt"] for row in rows]
    expected = trainer.predict(Dataset.from_list(rows)).predictions
    found = RegressionPredictor.from_pretrained(tmp_path / "second").predict(prompts)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_copy_of_the_base_is_the_base(base, tokenizer, tmp_path, rows):
    trainer = train(base, tokenizer, tmp_path / "run", rows)
    shutil.move(base, tmp_path / "moved")
    path = tmp_path / "run" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "moved")}))
    found = RegressionPredictor.from_pretrained(tmp_path / "run").predict([row["prompt"] for row in rows])
    assert found == pytest.approx(trainer.predict(Dataset.from_list(rows)).predictions, abs=1e-5)


def test_adapters_that_train_the_vocabulary_leave_the_base_as_it_is(base, tokenizer, tmp_path, rows, caplog):
    model = get_peft_model(opened(base), lora(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    train(model, tokenizer, tmp_path / "head", rows, peft_config=None)
    model = opened(base)
    grid = add_number_tokens(model, tokenizer, (0, 4), granularity=0.5)
    train(model, tokenizer, tmp_path / "tokens", rows, grid=grid)
    assert "is not what its name" not in caplog.text
    for folder in ("tokens", "head"):
        RegressionPredictor.from_pretrained(tmp_path / folder)


def test_training_does_not_go_on_on_another_base(base, tokenizer, tmp_path, rows):
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make(base, tokenizer, tmp_path / "run", rows, options=options, peft_config=lora()).train()
    options = {**options, "max_steps": 2}
    make(base, tokenizer, tmp_path / "run", rows, options=options, peft_config=lora()).train(True)
    move(base, "model.layers.1.self_attn.q_proj.weight", by=0.01)
    trainer = make(base, tokenizer, tmp_path / "run", rows, options={**options, "max_steps": 3}, peft_config=lora())
    with pytest.raises(
        ValueError, match=r"cannot go on from .*checkpoint-2': its adapter was trained on other weights"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_fingerprints_of_quantized_weights_are_not_compared_with_those_of_dense_ones():
    then = {"a": "0123", "b": "4567", "c": "89ab", "d": "cdef"}
    assert base_fingerprint.differing(then, {"a": "0123", "b": "uint8:aaaa", "c": "ffff"}) == ["c"]


def test_what_is_known_of_folders_without_a_fingerprint(base, tokenizer, tmp_path, rows):
    train(base, tokenizer, tmp_path / "run", rows)
    path = tmp_path / "run" / "raft_config.json"
    config = json.loads(path.read_text())
    assert config["base_is_folder"] is True
    assert len(config["base_fingerprint"]) == 21
    del config["base_is_folder"], config["base_fingerprint"]
    path.write_text(json.dumps(config))
    move(base, "model.layers.1.self_attn.q_proj.weight", by=0.01)
    RegressionPredictor.from_pretrained(tmp_path / "run")


def test_a_base_with_other_names_cannot_be_compared_and_that_is_said(base, tokenizer, tmp_path, rows, caplog):
    train(base, tokenizer, tmp_path / "run", rows)
    config = RaftConfig.load(tmp_path / "run" / "raft_config.json")
    config.base_fingerprint = {f"renamed.{name}": digest for name, digest in config.base_fingerprint.items()}
    config.save(tmp_path / "run")
    RegressionPredictor.from_pretrained(tmp_path / "run")
    assert "is not known: its files hold no tensors" in caplog.text
    base_fingerprint.check_base("run", config, "owner/model-that-is-not-here", {})
    assert "not on this machine, or cannot be read. To compare them, run: hf download owner/model-that" in caplog.text


def test_a_merged_model_has_no_base(base, tokenizer, tmp_path, rows):
    train(base, tokenizer, tmp_path / "run", rows)
    merge_and_save(tmp_path / "run", tmp_path / "merged")
    merged = RaftConfig.load(tmp_path / "merged" / "raft_config.json")
    assert (merged.base_fingerprint, merged.base_is_folder) == (None, None)
    shutil.rmtree(base)
    RegressionPredictor.from_pretrained(tmp_path / "merged")


class TestInitialisations:
    """Those that change the base model."""

    @pytest.mark.parametrize("init", ["pissa", "olora", "gaussian", "orthogonal"])
    def test_what_can_be_repeated_is_opened_as_it_was_trained(self, base, tokenizer, tmp_path, rows, init):
        adapter = lora(init_lora_weights=init)
        trainer = train(base, tokenizer, tmp_path / "run", rows, peft_config=adapter)
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        prompts = [row["prompt"] for row in rows]
        assert RegressionPredictor.from_pretrained(tmp_path / "run").predict(prompts) == pytest.approx(
            expected, abs=1e-4
        )

    @pytest.mark.parametrize(
        ("init", "cure"),
        [
            ("pissa_niter_4", "init_lora_weights='pissa'"),
            ("corda", "eva"),
            ("lora_ga", "init_lora_weights=True"),
            ("loftq", "replace_lora_weights_loftq"),
        ],
    )
    def test_what_cannot_be_repeated_is_refused_before_training(self, base, tokenizer, tmp_path, rows, init, cure):
        more = {"loftq_config": {"loftq_bits": 4}} if init == "loftq" else {}
        adapter = lora(init_lora_weights=init, **more)
        with pytest.raises(ValueError, match=rf"init_lora_weights='{init}'.*could not be made again.*{cure}"):
            make(base, tokenizer, tmp_path, rows, peft_config=adapter)

    def test_an_open_adapter_of_such_an_initialisation_is_refused(self, base, tokenizer, tmp_path, rows):
        adapter = lora(init_lora_weights="pissa_niter_4", task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match="random numbers"):
            make(get_peft_model(opened(base), adapter), tokenizer, tmp_path, rows)

    def test_a_saved_one_is_refused(self, base, tokenizer, tmp_path, rows):
        train(base, tokenizer, tmp_path / "run", rows)
        path = tmp_path / "run" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "lora_ga"}))
        with pytest.raises(ValueError, match=r"adapter in .*run.*lora_ga.*cannot be made again"):
            RegressionPredictor.from_pretrained(tmp_path / "run")

    def test_the_cure_keeps_the_initialisation(self, base, tokenizer, tmp_path, rows):
        model = get_peft_model(opened(base), lora(init_lora_weights="pissa_niter_4", task_type="CAUSAL_LM"))
        adapter = model.peft_config["default"]
        adapter.init_lora_weights = True
        adapter.base_model_name_or_path = str(tmp_path / "new-base")
        model.save_pretrained(tmp_path / "start")
        model.unload().save_pretrained(tmp_path / "new-base")
        trainer = train(str(tmp_path / "start"), tokenizer, tmp_path / "run", rows, peft_config=None)
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        found = RegressionPredictor.from_pretrained(tmp_path / "run").predict([row["prompt"] for row in rows])
        assert np.abs(found - expected).max() < 1e-4

    def test_an_initialisation_that_nobody_knows_is_found_out(self, base, tokenizer, tmp_path, rows, monkeypatch):
        # As one of a later version of PEFT might do.
        reset = Linear.reset_lora_parameters

        def change_base(self, *args):
            reset(self, *args)
            self.get_base_layer().weight.data += 0.01

        monkeypatch.setattr(Linear, "reset_lora_parameters", change_base)
        with pytest.raises(ValueError, match=r"changed the base model itself, such as .*proj.*init_lora_weights=True"):
            make(base, tokenizer, tmp_path, rows, peft_config=lora())
