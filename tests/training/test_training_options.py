"""What TRL offers to save memory or time in training: the same weights with it as without."""

import pytest
import torch
import trl.trainer.sft_trainer as sft_trainer
from datasets import Dataset
from safetensors import safe_open
from support.training import lora, make
from torch._dynamo.utils import counters
from trl.models import get_act_offloading_ctx_manager

import raft_peft.training.trainer as trainer_module
from raft_peft import NumberGrid, RegressionPredictor

SINGLE = range(5)
SEVERAL = NumberGrid([0, 1, 1.5, 2, 10])
CHECKPOINTING = {
    "by default": {},
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
    "every second layer": {"every_n_layers": 2},
}


@pytest.fixture
def varied():
    """Rows of sixteen lengths, which begin in three ways."""
    beginnings = ("Rate", "Rate the", "Judge this")
    return [
        {"prompt": f"{beginnings[n % 3]} {'very ' * n}hot tea from 0 to 4, the score is", "label": n / 4}
        for n in range(16)
    ]


@pytest.fixture
def compiling():
    """Compiling from scratch, with its counts at zero."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(model, tokenizer, tmp_path, rows, *, peft=True, **arguments):
    """A trainer after four steps, its weights and what it predicts. The model that is given keeps its own weights."""
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    options = {"max_steps": 4, "per_device_train_batch_size": 2, **arguments.pop("options")}
    peft_config = lora() if peft else None
    trainer = make(copied, tokenizer, tmp_path, rows, options=options, peft_config=peft_config, **arguments)
    trainer.train()
    weights = torch.cat([weight.detach().flatten().float() for weight in trainer.model.parameters()])
    return trainer, weights, torch.tensor(trainer.predict(Dataset.from_list(rows)).predictions)


def assert_same(found, expected, atol=1e-5):
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=atol)
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=10 * atol)


@pytest.mark.parametrize("settings", CHECKPOINTING.values(), ids=CHECKPOINTING)
@pytest.mark.parametrize(
    ("family", "grid", "peft", "padding_free"),
    [("tiny_llama", SINGLE, True, False), ("tiny_gemma2", SEVERAL, True, True), ("tiny_llama", SEVERAL, False, False)],
    ids=["LoRA", "several tokens, LoRA, padding-free", "several tokens, all weights"],
)
def test_checkpointing(settings, family, grid, peft, padding_free, tokenizer, tmp_path, rows, request):
    model = request.getfixturevalue(family)
    common = {"grid": grid, "peft": peft}
    options = {"padding_free": padding_free}
    expected = trained(model, tokenizer, tmp_path, rows, options=options, **common)
    options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": settings}
    assert_same(trained(model, tokenizer, tmp_path, rows, options=options, **common), expected)


@pytest.mark.parametrize(("every_n_layers", "calls"), [(1, 4), (2, 3)])
def test_checkpointing_runs_the_layers_again(every_n_layers, calls, tiny_llama, tokenizer, tmp_path, rows):
    options = {
        "max_steps": 1,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"every_n_layers": every_n_layers},
    }
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=options)
    seen = []
    for layer in tiny_llama.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    trainer.train()
    assert len(seen) == calls


@pytest.mark.parametrize(
    ("grid", "peft"), [(SINGLE, True), (SEVERAL, False)], ids=["single tokens, LoRA", "several tokens, all weights"]
)
def test_selective_checkpointing(grid, peft, tiny_llama, tokenizer, tmp_path, rows):
    common = {"grid": grid, "peft": peft}
    expected = trained(tiny_llama, tokenizer, tmp_path, rows, options={}, **common)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"selective": True}}
    assert_same(trained(tiny_llama, tokenizer, tmp_path, rows, options=options, **common), expected)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (SINGLE, {}),
        (SEVERAL, {"padding_free": True}),
        (SEVERAL, {"gradient_checkpointing": True}),
        (SINGLE, {"bf16": True}),
        (SINGLE, {"method": "pooled"}),
    ],
    ids=["single tokens", "several tokens, padding-free", "several tokens, checkpointing", "bf16", "pooled"],
)
def test_activation_offloading(grid, options, tiny_gemma2, tokenizer, tmp_path, rows, monkeypatch):
    """With the CPU in the accelerator's place: TRL's bookkeeping is the real one, its streams are not."""

    def on_the_cpu(model):
        with monkeypatch.context() as patched:
            patched.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
            return get_act_offloading_ctx_manager(model, use_pin_memory=False, use_streams=False, min_offload_size=1)

    monkeypatch.setattr(sft_trainer, "get_act_offloading_ctx_manager", on_the_cpu)
    monkeypatch.setattr(trainer_module, "refuse_offloading_without_accelerator", lambda args: None)
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)  # called where bitsandbytes is loaded
    expected = trained(tiny_gemma2, tokenizer, tmp_path, rows, grid=grid, options=options)
    found = trained(
        tiny_gemma2, tokenizer, tmp_path, rows, grid=grid, options={**options, "activation_offloading": True}
    )
    assert_same(found, expected)
    offloaded = found[0].maybe_activation_offload_context
    assert offloaded.tensor_id > 0
    assert len(offloaded.tracker) <= 1  # what is logged alone has no backward pass; the next step forgets it


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
@pytest.mark.parametrize(
    "options", [{"activation_offloading": True}, {"gradient_checkpointing_kwargs": {"offload": True}}]
)
def test_there_is_nowhere_to_offload_from_without_an_accelerator(options, tiny_llama, tokenizer, tmp_path, rows):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*there is no accelerator"):
        make(tiny_llama, tokenizer, tmp_path, rows, options=options)


@pytest.mark.parametrize(
    ("family", "grid", "options", "graphs"),
    [
        ("tiny_llama", SINGLE, {"bf16": True}, 4),
        ("tiny_gemma2", SEVERAL, {}, 4),
        ("tiny_llama", SEVERAL, {"padding_free": True}, 6),
    ],
    ids=["single tokens, bf16", "several tokens", "several tokens, padding-free"],
)
def test_compiling(family, grid, options, graphs, tokenizer, tmp_path, varied, compiling, request):
    """Once for the first batch and once for sizes that change, for the forward and for what is read off it: the hooks
    of a batch are not those of the batch before, and must be neither kept nor a reason to compile again."""
    model = request.getfixturevalue(family)
    options = {"max_steps": 6, **options}
    expected = trained(model, tokenizer, tmp_path, varied, grid=grid, options=options)
    options["torch_compile_backend"] = "eager"
    # In bf16 the last product rounds on the way, which is not compiled
    atol = 1e-3 if "bf16" in options else 1e-5
    assert_same(trained(model, tokenizer, tmp_path, varied, grid=grid, options=options), expected, atol)
    assert 0 < counters["stats"]["unique_graphs"] <= graphs
    assert not counters["graph_break"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]


def test_compiling_all_weights_with_checkpointing(tiny_llama, tokenizer, tmp_path, varied, compiling):
    expected = trained(tiny_llama, tokenizer, tmp_path, varied, grid=SEVERAL, peft=False, options={})
    options = {"torch_compile_backend": "aot_eager", "gradient_checkpointing": True}
    found = trained(tiny_llama, tokenizer, tmp_path, varied, grid=SEVERAL, peft=False, options=options)
    assert_same(found, expected)
    assert counters["stats"]["unique_graphs"] <= 4


def test_a_compiled_run_is_saved_and_resumed_like_another(tiny_llama, tokenizer, tmp_path, varied, compiling):
    tiny_llama.save_pretrained(tmp_path / "base")
    options = {"method": "logits_mlp", "torch_compile_backend": "eager", "save_strategy": "steps", "save_steps": 2}
    options |= {"max_steps": 4, "per_device_train_batch_size": 2}

    def run(name, **arguments):
        torch.manual_seed(0)
        trainer = make(str(tmp_path / "base"), tokenizer, tmp_path / name, varied, options=options, peft_config=lora())
        trainer.train(**arguments)
        return trainer

    trainer = run("run")
    trainer.save_model()
    expected = torch.tensor(trainer.predict(Dataset.from_list(varied)).predictions)
    for file in ("adapter_model.safetensors", "regression_head.safetensors"):
        with safe_open(tmp_path / "run" / file, "pt") as saved:
            assert not [name for name in saved.keys() if "_orig_mod" in name]  # noqa: SIM118 - no dict
    predictor = RegressionPredictor.from_pretrained(tmp_path / "run")
    found = predictor.predict([row["prompt"] for row in varied], batch_size=4)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)
    resumed = run("again", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    found = torch.tensor(resumed.predict(Dataset.from_list(varied)).predictions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
