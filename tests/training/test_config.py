import copy
import pickle
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from support.training import config, lora
from transformers import BitsAndBytesConfig, TrainingArguments
from trl import ModelConfig, SFTConfig, TrlParser

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionAwareTrainer
from raft_peft.losses import squared_error
from raft_peft.methods import MethodSettings
from raft_peft.training.config import loss_to_train_on, temporarily

GRID = NumberGrid(range(5))


def test_names_do_not_collide_with_those_of_trl():
    own = {*RegressionAwareConfig.__annotations__, *(setting.name for setting in fields(MethodSettings))}
    inherited = set(SFTConfig.__dataclass_fields__)
    assert own - inherited == {
        "label_column",
        "weight_by_ratings",
        "prompt_template",
        "chat",
        "system",
        "question_template",
        "question_weights",
        "preference_beta",
        "preference_weight",
        "separator",
        "score_prefix",
        "reasoning_weight",
        "reasonings",
        "non_finite_loss",
        "init",
        "log_predictions",
        *(setting.name for setting in fields(MethodSettings)),
    }
    other_defaults = {"learning_rate", "lr_scheduler_type", "warmup_steps", "truncation_mode"}
    assert own & inherited == {*other_defaults, "gradient_checkpointing", "padding_free"}


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("rmse", False),
        ("eval_mae", False),
        ("loss", False),
        ("eval_dev_rmse", False),
        ("pearson", True),
        ("eval_spearman", True),
        ("crps", False),
        ("eval_calibration_error", False),
    ],
)
def test_the_best_model_is_the_best(metric, greater):
    assert RegressionAwareConfig("out", metric_for_best_model=metric).greater_is_better is greater


def test_the_users_word_on_the_best_model_stands():
    assert RegressionAwareConfig("out", metric_for_best_model="rmse", greater_is_better=True).greater_is_better


@pytest.mark.parametrize(
    "setting",
    [
        {"packing": True},
        {"eval_packing": True},
        {"padding_free": True, "method": "ce"},
        {"completion_only_loss": True},
        {"assistant_only_loss": True},
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"dataset_text_field": "review"},
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
        {"label_names": ["stars"]},
        {"average_tokens_across_devices": False},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
        {"prediction_loss_only": True},
        {"truncation_mode": "keep_start"},
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_name(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}="):
        RegressionAwareConfig("out", **setting)


@pytest.mark.parametrize(
    ("capabilities", "multiplies_bf16"),
    [
        ({}, False),
        ({"amx_bf16": False, "avx512_bf16": False}, False),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
    ],
)
def test_bf16_follows_the_hardware(capabilities, multiplies_bf16, monkeypatch):
    has_accelerator = torch.accelerator.is_available()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert RegressionAwareConfig("out", use_cpu=True).bf16 is multiplies_bf16
    assert RegressionAwareConfig("out", use_cpu=True, bf16=False).bf16 is False
    if not has_accelerator:
        assert RegressionAwareConfig("out").bf16 is multiplies_bf16
    asked = RegressionAwareConfig("out", bf16=True)
    assert asked.bf16
    assert asked.use_cpu is not has_accelerator


@pytest.mark.parametrize("args", [SFTConfig("out", use_cpu=True, max_length=77), TrainingArguments("out", seed=3)])
def test_other_arguments_are_converted(args):
    config = RegressionAwareConfig.from_training_arguments(args)
    assert config.seed == args.seed
    assert config.learning_rate == args.learning_rate
    assert config.max_length == getattr(args, "max_length", 1024)


@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments])
@pytest.mark.parametrize(("metric", "greater"), [("rmse", False), ("eval_mae", False), ("pearson", True)])
def test_the_best_model_is_the_best_after_a_conversion(kind, metric, greater):
    """transformers takes the greatest for the best of every metric that is not called a loss."""
    args = kind("out", use_cpu=True, metric_for_best_model=metric)
    assert RegressionAwareConfig.from_training_arguments(args).greater_is_better is greater


def test_what_cannot_be_honoured_is_refused_in_a_conversion_too():
    with pytest.raises(ValueError, match="packing"):
        RegressionAwareConfig.from_training_arguments(SFTConfig("out", packing=True, use_cpu=True))


def test_what_happens_at_a_loss_that_is_not_finite_exists():
    with pytest.raises(ValueError, match=r"non_finite_loss='ignore'.*'stop' or 'skip'"):
        RegressionAwareConfig("out", non_finite_loss="ignore")


def test_the_command_line():
    parser = TrlParser((RegressionAwareConfig, ModelConfig))
    config, _ = parser.parse_args_and_config(
        ["--output_dir", "out", "--label_column", "stars", "--renormalize", "--separator", ": ", "--bf16", "False"]
    )
    assert (config.label_column, config.renormalize, config.separator) == ("stars", True, ": ")
    text = " ".join(parser.format_help().split())
    for name in ("label_column", "separator", "renormalize"):
        help_text = RegressionAwareConfig.__dataclass_fields__[name].metadata["help"]
        assert " ".join(help_text.split())[:60] in text


def test_settings_of_other_classes_and_none_at_all(tiny_llama, tmp_path):
    kwargs = {"use_reentrant": False}
    own = RegressionAwareConfig(str(tmp_path), report_to="none", bf16=False, gradient_checkpointing_kwargs=kwargs)
    before = copy.deepcopy(own.to_dict())
    taken = RegressionAwareConfig.of(own, tiny_llama)
    assert taken.to_dict() == before
    taken.max_steps = 9
    taken.accelerator_config.dispatch_batches = False
    taken.gradient_checkpointing_kwargs["selective"] = True
    assert own.to_dict() == before
    converted = RegressionAwareConfig.of(
        SFTConfig(str(tmp_path), report_to="none", use_cpu=True, max_steps=7), tiny_llama
    )
    assert isinstance(converted, RegressionAwareConfig)
    assert converted.max_steps == 7
    assert RegressionAwareConfig.of(None, "someone/stars/").output_dir == "stars-RAFT"


def test_settings_changed_for_a_while_come_back(tmp_path):
    args = RegressionAwareConfig(str(tmp_path), report_to="none", bf16=False, max_steps=7)
    with pytest.raises(KeyError), temporarily(args, max_steps=1, padding_free=True):
        assert (args.max_steps, args.padding_free) == (1, True)
        raise KeyError
    assert (args.max_steps, args.padding_free) == (7, None)


def test_a_pickle_without_tokens(tmp_path):
    """While the arguments are written beside a model they are read from, to upload it, with their token."""
    options = {"hub_token": "secret", "model_init_kwargs": {"token": "secret", "revision": "v1"}}
    args = RegressionAwareConfig(str(tmp_path), report_to="none", bf16=False, **options)
    with args.pickled_without_tokens():
        written = pickle.loads(pickle.dumps(args))
        assert args.hub_token == "secret"
    assert written.hub_token is None
    assert written.model_init_kwargs == {"token": None, "revision": "v1"}
    # A process that is started with the arguments gets them by a pickle, and whole.
    assert pickle.loads(pickle.dumps(args)).hub_token == "secret"


def test_a_loss_for_a_method_that_trains_on_text(tmp_path):
    args = RegressionAwareConfig(str(tmp_path), report_to="none", bf16=False, method="ce")
    assert loss_to_train_on(args, None, GRID) is None
    with pytest.raises(ValueError, match=r"`loss` cannot be used with method 'ce'"):
        loss_to_train_on(args, torch.nn.HuberLoss(reduction="none"), GRID)
    args = RegressionAwareConfig(str(tmp_path), report_to="none", bf16=False)
    assert loss_to_train_on(args, None, GRID) is squared_error


@pytest.mark.parametrize(
    ("options", "said"),
    [({"renormalize": False}, 1), ({"renormalize": True}, 0), ({"renormalize": False, "num_samples": 2}, 0)],
)
def test_a_loss_that_is_least_off_the_grid_is_named(options, said, tmp_path, caplog):
    loss_to_train_on(config(tmp_path, method="mbr", **options), None, GRID)
    assert caplog.text.count("falls to 0 where the model answers with no number of the grid at all") == said


def test_one_object_serves_two_trainers(tiny_llama, tokenizer, tmp_path, rows):
    tiny_llama.save_pretrained(tmp_path / "base")
    args = RegressionAwareConfig(str(tmp_path / "run"), report_to="none", bf16=False, padding_free=True)
    before = copy.deepcopy(args.to_dict())
    dtypes = []
    for quantization_config in (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16), None):
        trainer = RegressionAwareTrainer(
            str(tmp_path / "base"),
            args,
            grid=range(5),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=lora(),
            quantization_config=quantization_config,
        )
        dtypes.append(trainer.model.dtype)
        assert trainer.args is not args
        assert trainer.args.padding_free
        assert args.to_dict() == before
    assert dtypes == [torch.bfloat16, torch.float32]
