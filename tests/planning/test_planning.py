"""The memory planner, on small configs: against steps simulated whole, and against tensors counted by hand."""

import dataclasses

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen2MoeConfig, T5Config

from raft_peft.cli.command import main
from raft_peft.planning import plan_memory
from raft_peft.planning.byte_sizes import parse_bytes
from raft_peft.planning.estimate import Estimator
from raft_peft.planning.live_bytes import LiveBytes
from raft_peft.planning.settings import StepSettings
from raft_peft.planning.simulation import Skeleton
from raft_peft.planning.stand_ins import NF4Linear

GEMMA2 = {  # hidden, layers, intermediate, heads, key-value heads, head_dim, query_pre_attn_scalar
    "2b": (2304, 26, 9216, 8, 4, 256, 256),
    "9b": (3584, 42, 14336, 16, 8, 256, 256),
    "27b": (4608, 46, 36864, 32, 16, 128, 144),
}
SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def gemma2(size):
    hidden, layers, intermediate, heads, key_value_heads, head_dim, scalar = GEMMA2[size]
    return Gemma2Config(
        vocab_size=256_000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        sliding_window=4096,
    )


def llama(layers=5):
    return LlamaConfig(**SMALL, num_hidden_layers=layers)


def gemma3(layers=7, pattern=2):
    kinds = [("full" if i % pattern == pattern - 1 else "sliding") + "_attention" for i in range(layers)]
    return Gemma3TextConfig(**SMALL, num_hidden_layers=layers, layer_types=kinds, sliding_window=16)


def settings(**options):
    defaults = {
        "quantization": "nf4",
        "gradient_checkpointing": False,
        "batch_size": 4,
        "accumulation": 1,
        "max_length": 32,
        "r": 4,
        "target_modules": "all-linear",
        "dtype": "bfloat16",
        "bf16": True,
        "optim": "adamw_torch_fused",
        "attn_implementation": None,
        "device": "cuda",
    }
    return StepSettings(**{**defaults, **options})


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24e9),
        ("24 GiB", 24 * 2**30),
        ("80 gb", 80e9),
        (16, 16e9),
        (0.5, 5e8),
        ("512MiB", 2**29),
        ("24G", 24e9),
    ],
)
def test_amounts_of_memory_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "24 cows", "24", "-3GB", "0", "nan", "1e400"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_bytes(text)


# Counting


def test_tensors_are_counted_while_they_live_and_views_are_not():
    known = torch.ones(10)
    with LiveBytes([known], lambda t: t.shape[-1:] == (7,)) as live:
        a = known + 1
        b = a.view(2, 5)
        del a
        c = torch.empty(3, 7)
        del b
        known.mul_(2)
        d = torch.empty(5)
        assert len(c) == 3 and len(d) == 5
    assert live.timeline().tolist() == [40, 40 + 84, 84 + 20]
    assert live.timeline(watched=True).tolist() == [0, 84, 84]
    assert live.timeline_of([d, known]).tolist() == [0, 0, 20]


def test_what_the_backward_pass_needs_is_counted():
    weight = torch.ones(8, 8, requires_grad=True)
    with LiveBytes([weight], lambda _: False) as live:
        hidden = (torch.ones(4, 8) @ weight).exp()  # exp keeps its result, the product its input
        hidden.sum().backward()
    assert live.timeline().max() >= 4 * (32 + 32)
    assert live.timeline_of([weight.grad])[-1] == 256


# The lines in depth and batch size


@pytest.mark.parametrize(
    ("config", "quantization", "checkpointing", "batch_size"),
    [
        (llama(), "none", False, 5),
        (llama(), "nf4", True, 5),
        (llama(), "nf4", True, 1),
        (llama(), "int8", False, 4),
        (gemma3(), "nf4", False, 5),
    ],
    ids=["dense", "checkpointing", "one row", "int8", "layers of two types"],
)
def test_the_lines_meet_a_step_simulated_whole(config, quantization, checkpointing, batch_size):
    wanted = settings(quantization=quantization, gradient_checkpointing=checkpointing, batch_size=batch_size)
    estimator = Estimator(config)
    held, step = estimator.held(wanted), estimator.step(wanted)
    skeleton = Skeleton(config, wanted)
    assert held == skeleton.held()
    moments = skeleton.step(batch_size, padded=batch_size > 1)
    assert step.activations + step.gradients + step.logits == pytest.approx(moments[:, 0].max(), rel=1e-3)


def test_layers_that_are_not_alike_are_simulated_whole():
    assert Estimator(llama(6))._choose_depths(settings()) == (2, 3)
    assert Estimator(gemma3(7))._choose_depths(settings()) == (3, 5)
    assert Estimator(gemma3(7, pattern=7))._choose_depths(settings()) == (7,)
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    sizes = {name: size for name, size in SMALL.items() if name != "head_dim"}
    last_is_dense = Qwen2MoeConfig(**sizes, **experts, num_hidden_layers=6, mlp_only_layers=[5])
    assert Estimator(last_is_dense)._choose_depths(settings()) == (6,)


def test_gradients_of_earlier_forward_passes_are_there_from_the_beginning():
    estimator = Estimator(llama(2))
    once, again = (estimator.step(settings(accumulation=count)) for count in (1, 4))
    adapter = estimator.held(settings()).adapter
    assert again.gradients == adapter
    assert once.gradients < again.gradients
    assert 0 < sum(dataclasses.astuple(again)) - sum(dataclasses.astuple(once)) <= adapter


def test_autocast_on_a_gpu_spares_the_copies_that_peft_makes_without():
    """PEFT asks whether autocast is on without naming a device, and gets the answer for CUDA."""
    on_gpu, on_cpu = (Estimator(llama(2)).step(settings(device=device)) for device in ("cuda", "cpu"))
    assert on_gpu.activations < on_cpu.activations
    assert not torch.is_autocast_enabled()


# What is held


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_weights_are_as_many_bytes_as_the_quantized_layers_have(quantization):
    from bitsandbytes.functional import quantize_4bit
    from transformers import AutoModelForCausalLM

    config = llama(3)
    expected = 0
    for name, parameter in AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).named_parameters():
        if quantization == "none" or "proj" not in name:
            expected += 2 * parameter.numel()
        elif quantization == "int8":
            expected += parameter.numel() + 4 * len(parameter)
        else:
            packed, state = quantize_4bit(parameter.data, quant_type="nf4", compress_statistics=True)
            expected += sum(one.nbytes for one in (packed, state.absmax, state.state2.absmax))
    buffers = 2 * 4 * config.head_dim // 2  # the frequencies of the positions, twice
    assert Estimator(config).held(settings(quantization=quantization)).weights == expected + buffers


def test_the_adapter_is_float32_and_adamw_keeps_two_numbers_for_each():
    held = Estimator(llama()).held(settings())
    per_layer = 4 * (
        2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    )  # r x (in + out) of q, o, k, v, and the MLP's three
    assert held.adapter == 5 * per_layer * 4
    assert held.optimizer == 2 * held.adapter


def test_optimizers_in_8_bits_keep_small_tensors_in_float32():
    eight = settings(optim="paged_adamw_8bit")
    assert eight.optimizer_bytes(4095) == 8 * 4095
    assert eight.optimizer_bytes(65_536) == 2 * 65_536 + 8 * 256


# Plans


@pytest.fixture(scope="module")
def plan():
    """Of a small model, for any memory."""
    return plan_memory(llama(2), max_length=64)


@pytest.fixture(scope="module")
def open_plans(plan):
    """The plans with all settings, by quantization and checkpointing."""
    everything = (plan, *plan.alternatives)
    return {(one.settings.quantization, one.settings.gradient_checkpointing): one for one in everything}


def test_without_a_limit_the_fastest_settings_are_planned(plan, open_plans):
    assert plan.fits
    assert (plan.settings.quantization, plan.settings.gradient_checkpointing) == ("none", False)
    assert (plan.settings.batch_size, plan.settings.accumulation) == (16, 1)
    assert len(open_plans) == 4


def test_checkpointing_and_quantization_save_memory(open_plans):
    assert open_plans["none", True].activations < open_plans["none", False].activations
    assert open_plans["nf4", False].weights < open_plans["none", False].weights


def test_a_total_is_the_sum_of_its_parts(open_plans):
    for plan in open_plans.values():
        parts = [plan.weights, plan.adapter, plan.gradients, plan.optimizer, plan.activations, plan.logits]
        assert plan.total == sum(parts) + plan.allowance
        assert min(parts) >= 0


def test_the_largest_batch_that_fits_is_taken(plan):
    less = (plan.total - 1000) / 1e9
    smaller = plan_memory(llama(2), less, max_length=64, quantization="none", gradient_checkpointing=False)
    assert smaller.fits
    assert (smaller.settings.batch_size, smaller.settings.accumulation) == (8, 2)


def test_where_nothing_fits_the_plan_says_what_is_missing():
    plan = plan_memory(llama(2), "100KB", max_length=64)
    assert not plan.fits
    assert plan.settings.batch_size == 1
    assert plan.total == min(one.total for one in (plan, *plan.alternatives))
    text = str(plan)
    assert "does not fit in 0 MB" in text and "are missing" in text
    assert "RegressionAwareTrainer" not in text


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_snippet_is_python_with_the_settings_planned(quantization):
    plan = plan_memory(
        llama(2), quantization=quantization, r=8, batch_size=2, max_length=32, attn_implementation="eager"
    )
    snippet = plan.snippet()
    compile(snippet, "snippet", "exec")
    assert "per_device_train_batch_size=2," in snippet and "gradient_accumulation_steps=8," in snippet
    assert 'model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"}' in snippet
    assert {
        "none": "peft_config=LoraConfig(r=8, lora_alpha=16",
        "nf4": "**qlora(r=8)",
        "int8": "load_in_8bit=True",
    }[quantization] in snippet


@pytest.mark.parametrize(("multiplies_bf16", "attention"), [(False, None), (True, "eager")])
def test_on_the_cpu_the_defaults_are_those_of_the_trainer(multiplies_bf16, attention, monkeypatch):
    monkeypatch.setattr("raft_peft.planning.search.cpu_multiplies_bf16", lambda: multiplies_bf16)
    monkeypatch.setattr("raft_peft.training.quantization.cpu_emulates_bf16", lambda: not multiplies_bf16)
    plan = plan_memory(llama(2), device="cpu", batch_size=1, max_length=32, gradient_checkpointing=False)
    assert plan.allowance == 0
    assert (plan.settings.bf16, plan.settings.attn_implementation) == (multiplies_bf16, attention)
    assert [one.settings.dtype for one in (plan, *plan.alternatives)] == [
        "float32",
        "bfloat16" if multiplies_bf16 else "float32",
    ]


@pytest.mark.parametrize(
    ("device", "emulates", "dtype"),
    [("cuda", False, "bfloat16"), ("cuda", True, "bfloat16"), ("cpu", False, "bfloat16"), ("cpu", True, "float32")],
)
def test_nf4_computes_as_qlora_has_it(device, emulates, dtype, monkeypatch):
    monkeypatch.setattr("raft_peft.training.quantization.cpu_emulates_bf16", lambda: emulates)
    plan = plan_memory(llama(2), device=device, quantization="nf4", batch_size=1, max_length=32)
    assert plan.settings.dtype == dtype
    dense = torch.nn.Linear(64, 64, device="meta", dtype=torch.float16)
    layer = NF4Linear(dense, device)
    assert layer.compute_dtype == getattr(torch, dtype)
    assert layer(torch.empty(2, 64, device="meta", dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("size", "memory", "fits"), [("2b", "16GB", True), ("9b", "16GB", True), ("27b", "16GB", False)]
)
def test_gemma_2(size, memory, fits):
    plan = plan_memory(gemma2(size), memory, quantization="nf4", gradient_checkpointing=True, batch_size=1)
    assert plan.fits == fits
    parameters = {"2b": 2.614e9, "9b": 9.242e9, "27b": 27.227e9}[size]
    embeddings = 256_000 * GEMMA2[size][0]
    assert plan.weights == pytest.approx(2 * embeddings + (parameters - embeddings) * 0.516, rel=0.01)


# What cannot be planned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "fp3"}, "Use none, nf4, int8"),
        ({"optim": "sgd"}, "Use adamw_torch_fused"),
        ({"device": "abacus"}, "Use cuda, cpu"),
        ({"dtype": "int4"}, "Use bfloat16"),
        ({"batch_size": 0}, "positive whole number"),
        ({"global_batch_size": 0}, "positive whole number"),
        ({"max_length": 1.5}, "positive whole number"),
        ({"gpu_memory": "large"}, "not an amount of memory"),
    ],
)
def test_settings_that_cannot_be_planned_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_memory(llama(), **options)


def test_models_that_cannot_be_planned_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        plan_memory(str(tmp_path))
    with pytest.raises(ValueError, match="is not a model that can be planned for"):
        plan_memory(3)
    with pytest.raises(ValueError, match="T5Config"):
        plan_memory(T5Config(num_layers=2))


# The command


def test_the_command_prints_the_plan_of_a_folder(tmp_path, capsys):
    llama(2).save_pretrained(tmp_path)
    arguments = [
        "plan",
        "--model",
        str(tmp_path),
        "--gpu-memory",
        "2GB",
        "--quantization",
        "nf4",
        "--max-length",
        "32",
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "of 2.00 GB, it fits" in text and "**qlora()" in text
    for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "allowance", "total"):
        assert f"\n  {part} " in text


def test_the_command_reports_errors_in_one_line(tmp_path, capsys):
    assert main(["plan", "--model", str(tmp_path), "--gpu-memory", "24GB"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("raft-peft plan: The config of") and error.count("\n") == 1


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "--help"])
    assert exit_.value.code == 0
    assert "raft-peft plan --model google/gemma-2-9b-it --gpu-memory 24GB" in capsys.readouterr().out
