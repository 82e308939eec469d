"""The models that benchmarks/gpu_memory.py builds, and one of its runs."""

import math
import weakref

import gpu_memory
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from common.random_weights import random_quantized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

from raft_peft.training.quantization import qlora

NF4 = qlora()["quantization_config"]


def gemma2(**options):
    defaults = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
    }
    return Gemma2Config(**{**defaults, **options})


def test_the_model_is_the_one_that_from_pretrained_makes_of_the_same_dense_weights(monkeypatch, tmp_path):
    torch.manual_seed(0)
    config = gemma2()
    dense_weights = {}
    convert = Bnb4bitQuantize.convert

    def keep(self, input_dict, **options):
        dense_weights.update({name: weight.clone() for name, weight in input_dict.items()})
        return convert(self, input_dict, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Bnb4bitQuantize, "convert", keep)
        model = random_quantized(config, AutoModelForCausalLM, NF4)
    assert len(dense_weights) == 7 * config.num_hidden_layers
    rest = {name: tensor for name, tensor in model.named_parameters() if name not in dense_weights}
    dense = Gemma2ForCausalLM(config).to(torch.bfloat16)
    missing = dense.load_state_dict({**dense_weights, **rest}, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])  # tied
    dense.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=NF4, attn_implementation="eager"
    )

    kinds = [{name: type(module) for name, module in one.named_modules()} for one in (model, loaded)]
    assert kinds[0] == kinds[1]
    for name in ("is_quantized", "is_loaded_in_4bit", "quantization_method", "training"):
        assert getattr(model, name) == getattr(loaded, name), name
    assert model.config.quantization_config.to_dict() == loaded.config.quantization_config.to_dict()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.randint(3, 320, (2, 20))
    with torch.no_grad():
        logits, expected = model(ids).logits, loaded(ids).logits
    assert torch.equal(logits, expected)
    assert logits.std() > 0.1


class LiveBytes(TorchDispatchMode):
    """The largest sum of the bytes of the tensors alive, of those that are made while it is on."""

    def __init__(self):
        super().__init__()
        self.known = weakref.WeakSet()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.free, storage.nbytes())
        return made

    def free(self, size):
        self.bytes -= size


def test_the_dense_model_never_exists():
    config = gemma2(num_hidden_layers=12, hidden_size=128, intermediate_size=1024)
    with LiveBytes() as live:
        model = random_quantized(config, AutoModelForCausalLM, NF4)
    quantized = [module for module in model.modules() if isinstance(module, Linear4bit)]
    dense = [2 * module.in_features * module.out_features for module in quantized]
    kept = sum(parameter.nbytes for parameter in model.parameters())
    assert kept < live.bytes < 1.1 * kept  # also the scales of the blocks, and buffers
    assert live.peak <= live.bytes + 2 * max(dense)  # a dense layer, and on its way to 4 bits
    assert live.peak < 0.5 * sum(dense)


def test_a_head_on_the_hidden_state_stays_dense_and_other_quantizations_are_refused():
    model = random_quantized(gemma2(num_labels=1), AutoModelForSequenceClassification, NF4)
    assert type(model.score) is torch.nn.Linear
    assert model.score.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="load_in_4bit"):
        random_quantized(gemma2(), AutoModelForCausalLM, type(NF4)(load_in_8bit=True))


@pytest.mark.parametrize("way", ["raft", "head", "sft", "sft_all_logits"])
def test_each_way_trains_every_layer_on_rows_of_the_length_asked_for(way, tmp_path):
    args = gpu_memory.Arguments(size="tiny", length=16, batch_size=2, steps=2, device="cpu")
    auto_class = AutoModelForSequenceClassification if way == "head" else AutoModelForCausalLM
    model = random_quantized(gpu_memory.make_config(args, way), auto_class, NF4)
    trainer = gpu_memory.make_trainer(args, way, model, tmp_path)
    assert {len(row["input_ids"]) for row in trainer.train_dataset} == {16}
    trainer.train()
    updated = [bool(weight.any()) for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    assert len(updated) == 7 * 2
    assert all(updated)


def test_the_figures_of_a_run():
    figures = gpu_memory.measure(gpu_memory.Arguments(size="tiny", length=16, steps=3, device="cpu"), "raft")
    assert math.isfinite(figures["loss"])
    assert len(figures["seconds_a_step"]) == 2
    assert figures["tokens_a_second"] == 16 / figures["seconds"]
    assert 0 < figures["utilisation"] < 1


def test_model_flops_are_those_of_the_matrices():
    config = gemma2(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    model = random_quantized(config, AutoModelForCausalLM, NF4)
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 256
    attention = 4 * 64 * (8 + 16)  # a window of 8, and all 16 tokens
    expected = 16 * (2 * 4 * layer + 3 * attention) + 3 * 4 * 320 * 64
    assert gpu_memory.model_flops(model, length=16, logit_positions=3) == expected
