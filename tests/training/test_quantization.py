"""Adapters on real quantized weights: what is trained keeps its precision, and comes back with the same numbers."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from support.training import GRID, config, make
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from raft_peft import RegressionAwareTrainer, RegressionPredictor, qlora
from raft_peft.cli.command import main

INT8 = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "peft_config": qlora(r=4)["peft_config"]}


def test_the_usual_choice():
    arguments = qlora(r=8, lora_dropout=0.1)
    quantization, adapter = arguments["quantization_config"], arguments["peft_config"]
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) == (True, "nf4")
    assert quantization.bnb_4bit_use_double_quant
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (8, 16, 0.1)
    assert adapter.target_modules == "all-linear"
    assert qlora(target_modules=["q_proj"])["peft_config"].target_modules == {"q_proj"}


# By the instructions of the CPU, where there is no accelerator.
COMPUTE_DTYPES = pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ({"architecture": "aarch64"}, "bfloat16"),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}, "float32"),
    ],
    ids=["bf16 instructions", "unknown", "emulated bf16"],
)


@COMPUTE_DTYPES
@pytest.mark.parametrize("has_accelerator", [False, True])
def test_the_usual_choice_computes_in_what_is_fast(capabilities, dtype, has_accelerator, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    found = qlora()["quantization_config"].bnb_4bit_compute_dtype
    assert found == (torch.bfloat16 if has_accelerator else getattr(torch, dtype))


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    """A model whose linear layers are large enough to be quantized in blocks."""
    settings = {**tiny_llama.config.to_dict(), "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(type(tiny_llama.config)(**settings)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@COMPUTE_DTYPES
def test_the_command_line_quantizes_alike(capabilities, dtype, base, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    out = tmp_path / "run"
    arguments = [
        *("train", "--model_name_or_path", str(base), "--load_in_4bit", "--grid", "0..4", "--output_dir", str(out)),
        *("--train_file", str(tmp_path / "rows.jsonl"), "--max_steps", "1", "--disable_tqdm", "true"),
        *("--use_cpu", "true", "--bf16", "false"),
    ]
    assert main(arguments) == 0
    saved = json.loads((out / "raft_config.json").read_text())["quantization"]
    usual = qlora()["quantization_config"].to_dict()
    assert {name: saved[name] for name in usual} == usual
    assert saved["bnb_4bit_compute_dtype"] == dtype
    model = RegressionPredictor.from_pretrained(out).model
    assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("arguments", "bits"), [(qlora(r=4), 4), (INT8, 8)], ids=["nf4", "int8"])
def test_smollm2_trains_and_predicts_the_same_after_loading(arguments, bits, smollm2, rows, tmp_path):
    options = {"bf16": True, "max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    dataset = Dataset.from_list(rows[:4])
    trainer = RegressionAwareTrainer(
        str(smollm2), config(tmp_path / "run", **options), grid=GRID, train_dataset=dataset, **arguments
    )
    assert getattr(trainer.model, f"is_loaded_in_{bits}bit")
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}
    before = trainer.predict(dataset).predictions
    trainer.train()
    expected = trainer.predict(dataset).predictions
    assert np.abs(expected - before).max() > 1e-2
    trainer.save_model()
    predictor = RegressionPredictor.from_pretrained(tmp_path / "run")
    assert getattr(predictor.model, f"is_loaded_in_{bits}bit")
    one_by_one = [trainer.predict(dataset.select([row])).predictions for row in range(4)]
    found = [predictor.predict([row["prompt"]]) for row in rows[:4]]
    np.testing.assert_allclose(found, one_by_one, rtol=1e-5)
    together = predictor.predict([row["prompt"] for row in rows[:4]])
    np.testing.assert_allclose(together, expected, atol=0.2)  # padding and prefix round differently in bf16


def test_what_is_left_dense_is_not_upcast(smollm2, tmp_path):
    trainer = RegressionAwareTrainer(str(smollm2), config(tmp_path, bf16=True), grid=GRID, **qlora(r=4))
    dtypes = {str(p.dtype) for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert dtypes == {"torch.uint8", "torch.bfloat16"}
    chosen = config(tmp_path, bf16=True, model_init_kwargs={"dtype": "float32"})
    trainer = RegressionAwareTrainer(str(smollm2), chosen, grid=GRID, **qlora(r=4))
    assert trainer.model.get_input_embeddings().weight.dtype == torch.float32


def test_small_updates_are_not_lost(base, tokenizer, rows, tmp_path):
    """At this learning rate an AdamW step moves a weight by less than a bf16 number can."""
    options = {"bf16": True, "max_steps": 3, "learning_rate": 1e-6, "warmup_steps": 0, "weight_decay": 0.0}
    trainer = make(str(base), tokenizer, tmp_path / "run", rows, options=options, **qlora(r=4))
    trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_B" in name}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all((after[name] != tensor).any() for name, tensor in trained.items())
    first = {name: p for name, p in after.items() if "lora_A" in name}
    rounded = {name: p.detach().bfloat16().float() for name, p in first.items()}
    assert any((p != rounded[name]).any() for name, p in first.items())


def test_a_trained_adapter_is_not_rounded(base, tokenizer, rows, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16", quantization_config=NF4)
    model = get_peft_model(model, qlora(r=4)["peft_config"])
    before = {name: p.detach().normal_().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    trainer = make(model, tokenizer, tmp_path / "run", rows)
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in before.values())


NF4 = qlora()["quantization_config"]


def test_an_evaluation_before_training_changes_nothing(base, tokenizer, rows, tmp_path):
    weights = []
    for evaluates in (False, True):
        options = {"bf16": True, "max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0}
        trainer = make(str(base), tokenizer, tmp_path / "run", rows, options=options, **qlora(r=4))
        if evaluates:
            trainer.evaluate(Dataset.from_list(rows))
        trainer.train()
        weights.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_weights_that_were_packed_for_inference(base, tokenizer, rows, tmp_path):
    """As bitsandbytes does on some CPUs when a model is run for evaluation."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16", quantization_config=NF4)
    model.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights of .*up_proj were packed .* Load the model afresh"):
        make(model, tokenizer, tmp_path, rows, peft_config=qlora(r=4)["peft_config"])


class TestLoading:
    @pytest.fixture
    def folder(self, base, tokenizer, rows, tmp_path):
        options = {"bf16": True, "max_steps": 2}
        trainer = make(str(base), tokenizer, tmp_path / "run", rows, options=options, **qlora(r=4))
        trainer.train()
        trainer.save_model()
        return tmp_path / "run"

    def test_the_quantization_is_written_down(self, folder):
        saved = json.loads((folder / "raft_config.json").read_text())
        assert saved["quantization"]["bnb_4bit_quant_type"] == "nf4"
        assert (saved["dtype"], saved["autocast"]) == ("bfloat16", "bfloat16")

    def test_without_it_where_asked(self, folder):
        predictor = RegressionPredictor.from_pretrained(folder, quantization_config=False)
        assert not getattr(predictor.model, "is_loaded_in_4bit", False)

    def test_a_base_that_is_stored_quantized(self, folder, base, recwarn):
        """Its own folder says how, and nothing is quantized twice."""
        quantized = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16", quantization_config=NF4)
        quantized.save_pretrained(base)
        assert hasattr(AutoConfig.from_pretrained(base), "quantization_config")
        predictor = RegressionPredictor.from_pretrained(folder)
        assert isinstance(predictor.model, PeftModel)
        assert predictor.model.is_loaded_in_4bit
        assert not [warning for warning in recwarn if "quantization_config" in str(warning.message)]


class TestAutocast:
    def test_predictions_are_those_of_the_trainer(self, tiny_llama, tokenizer, rows, tmp_path):
        tiny_llama.save_pretrained(tmp_path / "base")
        options = {"bf16": True, "max_steps": 2, "learning_rate": 1e-3}
        trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / "run", rows, options=options)
        trainer.train()
        trainer.save_model()
        prompt = [rows[0]["prompt"]]
        expected = trainer.predict(Dataset.from_list(rows[:1])).predictions
        found = RegressionPredictor.from_pretrained(tmp_path / "run").predict(prompt)
        exact = RegressionPredictor.from_pretrained(tmp_path / "run", autocast="float32").predict(prompt)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.abs(exact - expected).max() > 1e-5

    def test_a_dtype_that_is_none(self, tiny_llama, tokenizer):
        with pytest.raises(ValueError, match="autocast='int8' is not a dtype to compute in"):
            RegressionPredictor(tiny_llama, tokenizer, GRID, autocast="int8")
