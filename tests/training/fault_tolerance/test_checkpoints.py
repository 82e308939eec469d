"""What is whole of a checkpoint, whatever moment it was cut off at, and folders that cannot be written to."""

import json
import resource
import shutil

import pytest
import torch
from conftest import make_byte_level, make_tiny_llama
from support.training import lora, make

from raft_peft.training.fault_tolerance.checkpoints import (
    check_output_folder,
    checkpoint_bytes,
    last_whole_checkpoint,
    why_not_whole,
)

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two checkpoints, of a method with a head of its own."""
    folder, tokenizer = tmp_path_factory.mktemp("trained"), make_byte_level()
    rows = [{"prompt": f"Rate item {index} from 0 to 4, the score is", "label": 0.5 * index} for index in range(8)]
    options = {**OPTIONS, "method": "logits_mlp"}
    make(make_tiny_llama(tokenizer), tokenizer, folder, rows, options=options, peft_config=lora()).train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained folder, which a test may change."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def test_the_last_whole_one(run, caplog):
    assert last_whole_checkpoint(run) == str(run / "checkpoint-4")
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-2")
    assert "checkpoint-4 is skipped, since it has no trainer_state.json" in caplog.text
    (run / "checkpoint-10").mkdir()
    (run / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-2")
    assert last_whole_checkpoint(run / "checkpoint-2") is None


@pytest.mark.parametrize(
    "name",
    [
        "trainer_state.json",
        "adapter_model.safetensors",
        "regression_head.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
    ],
)
def test_a_file_cut_off_anywhere_is_found(run, name):
    path = run / "checkpoint-4" / name
    whole = path.read_bytes()
    assert why_not_whole(path.parent) is None
    for size in (0, len(whole) // 10, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:size])
        assert why_not_whole(path.parent) == f"its {name} is cut off"


def test_a_run_that_has_ended_takes_no_step_more(run, tiny_llama, tokenizer, rows, tmp_path):
    """`max_steps` within an epoch, and killed behind the last checkpoint."""
    settings = {**OPTIONS, "method": "logits_mlp", "max_steps": 2, "per_device_train_batch_size": 3}
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options=settings, peft_config=lora())
    before = None

    def note(*_):
        nonlocal before
        before = [weight.clone() for weight in trainer.model.parameters()]

    trainer.create_optimizer().register_step_pre_hook(note)
    assert trainer.train(resume_from_checkpoint=str(run / "checkpoint-2")).global_step == 2
    assert before is None


def test_training_names_a_checkpoint_that_is_not_whole(run, tiny_llama, tokenizer, rows, tmp_path):
    (run / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1')
    trainer = make(
        tiny_llama, tokenizer, tmp_path, rows, options={**OPTIONS, "method": "logits_mlp"}, peft_config=lora()
    )
    with pytest.raises(ValueError, match=r"checkpoint-4'.*trainer_state.json is cut off.*True for the last whole one"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_the_beginning_where_there_is_no_checkpoint_yet(tiny_llama, tokenizer, rows, tmp_path, caplog):
    trainer = make(tiny_llama, tokenizer, tmp_path / "new", rows, options={"max_steps": 1}, peft_config=lora())
    assert trainer.train(resume_from_checkpoint=True).global_step == 1
    assert "Training starts from the beginning" in caplog.text


def test_bytes_of_a_checkpoint_are_those_on_the_disk(run, tiny_llama, tokenizer, rows, tmp_path):
    trainer = make(
        tiny_llama, tokenizer, tmp_path / "b", rows, options={**OPTIONS, "method": "logits_mlp"}, peft_config=lora()
    )
    files = [run / "checkpoint-4" / name for name in ("adapter_model.safetensors", "regression_head.safetensors")]
    weights = sum(file.stat().st_size for file in files)
    optimizer = (run / "checkpoint-4" / "optimizer.pt").stat().st_size
    options = {"save_only_model": True}
    assert checkpoint_bytes(trainer.model, "adamw_torch", **options) <= weights
    assert checkpoint_bytes(trainer.model, "adamw_torch", **options) > 0.6 * weights
    both = checkpoint_bytes(trainer.model, "adamw_torch", save_only_model=False)
    assert 0.6 * (weights + optimizer) < both <= weights + optimizer
    assert checkpoint_bytes(trainer.model, trainer.args.optim, save_only_model=False) == both
    assert checkpoint_bytes(trainer.model, "adafactor", save_only_model=False) <= weights


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tiny_llama, tokenizer, rows, tmp_path):
    (tmp_path / "file").write_text("no folder")
    trainer = make(tiny_llama, tokenizer, tmp_path / "out", rows, options={"max_steps": 1}, peft_config=lora())
    for folder in (tmp_path / "file" / "out", "/proc/out"):
        trainer.args.output_dir = str(folder)
        with pytest.raises(OSError, match=rf"output folder '{folder}'.*Training has not begun"):
            trainer.train()


def test_a_disk_without_room_is_named_before_training(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_output_folder(tmp_path / "out", 1000)
    with pytest.raises(OSError, match=rf"'{tmp_path}' has .* GB free, and a checkpoint takes .* GB"):
        check_output_folder(tmp_path, 2 * free)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("largest", [0, 700, 20_000, 60_000])
def test_a_checkpoint_that_cannot_be_written_names_the_folder(run, tiny_llama, tokenizer, rows, largest):
    """Files that may not grow beyond a size stand in for a full disk: the operating system refuses the write."""
    trainer = make(
        tiny_llama,
        tokenizer,
        run,
        rows,
        options={**OPTIONS, "max_steps": 6, "method": "logits_mlp"},
        peft_config=lora(),
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    check = "raft_peft.training.fault_tolerance.trainer.check_output_folder"
    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.raises(OSError, match="checkpoint-6' could not be written") as error,
    ):
        patched.setattr(check, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1])))
        try:
            trainer.train(resume_from_checkpoint=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"The last whole checkpoint is {run / 'checkpoint-4'}" in str(error.value)
    assert last_whole_checkpoint(run) == str(run / "checkpoint-4")
    assert trainer.train(resume_from_checkpoint=True).global_step == 6
    assert json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["global_step"] == 6


def test_a_model_that_cannot_be_saved_is_not_lost(tiny_llama, tokenizer, rows, tmp_path):
    trainer = make(tiny_llama, tokenizer, tmp_path / "out", rows, options={"max_steps": 1}, peft_config=lora())
    trainer.train()
    before = [weight.clone() for weight in trainer.model.parameters()]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file/out' could not be written.*There is no whole checkpoint yet"):
        trainer.save_model(str(tmp_path / "file" / "out"))
    torch.testing.assert_close(list(trainer.model.parameters()), before)
