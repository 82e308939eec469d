"""What is written beside the adapter, so that a saved folder predicts by itself, and reading it back."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, cached_file

from raft_peft.forward.attention import own_implementation
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.methods.fields import LOSS_SETTINGS
from raft_peft.methods.table import METHODS, MethodSettings

RAFT_CONFIG_NAME = "raft_config.json"
CALIBRATION_NAME = "calibration.json"
QUESTION_CALIBRATION_NAME = "question_calibration.json"
CARD_NAME = "README.md"
PICTURE_NAME = "prediction_and_truth.png"
# Those beside it are of the distributions, where labels are several ratings.
PICTURE_NAMES = (PICTURE_NAME, "prediction_and_truth-uncertainty.png", "prediction_and_truth-ratings.png")
# Under this name the head stands in the model, and its parameters beside the model's own files.
HEAD_NAME = "regression_head"
HEAD_FILE = f"{HEAD_NAME}.safetensors"
# The name of the pipeline's task, for `pipeline` and for the model card.
TASK = "text-regression"

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")

_VERSIONED = ("raft-peft", "transformers", "peft", "trl", "torch")


def installed_versions() -> dict[str, str]:
    """The versions of this package and of those it builds on."""
    return {name: version(name) for name in _VERSIONED}


@dataclass(kw_only=True)
class RaftConfig(MethodSettings):
    """The contents of `raft_config.json`: those of [`MethodSettings`], and these.

    Attributes:
        values: the numbers of the grid; empty where it was trained on typed questions.
        texts: the text of each number.
        token_ids: the token ids of each number as first resolved in training, or None where no row was seen.
        token_texts: what the tokenizer decoded these ids to.
        separator: the text between prompt and number, or None for the default.
        max_length: the most tokens of a prompt, or None.
        head: the class of a head that is not the method's own, which loading has to be given; None for the method's
            own.
        base_model: name or path of the model under the adapter.
        base_is_folder: whether that is the path of a folder; None where it is not known.
        base_fingerprint: digests of a few slices of the tensors of that model in training, by the tensors' names; None
            where they are not known. See `base_fingerprint.py`.
        dtype: the dtype of the weights in training.
        autocast: the dtype in which products were computed in training; None for that of the weights.
        quantization: how the base model under an adapter was quantized, as `quantization_config.to_dict()` gives it;
            None where it was not.
        attn_implementation: the model's attention in training. With these four, predictions are the same after
            loading.
        adapter: whether the weights beside it are an adapter's; False for a whole model's, None where it is not known.
        train_rows: how many rows it was trained on; None where they were a stream, or there were none.
        prompt_template: what the prompts were written by, a text or messages with columns in braces; None where they
            came as they are.
        prompt_shape: what the prompts of training had in common; None where it is not known.
        questions: the typed questions that all rows of training asked in the same words, by their ids.
        question_template: how typed questions were written; None where the rows had one number. There are no values
            then.
        score_prefix: the words between a reasoning and its number; None where rows had no reasoning.
        versions: the versions of the libraries that wrote the folder.
    """

    values: list[float]
    texts: list[str]
    token_ids: list[list[int]] | None = None
    token_texts: list[str] | None = None
    separator: str | None = None
    max_length: int | None = None
    head: str | None = None
    base_model: str | None = None
    base_is_folder: bool | None = None
    base_fingerprint: dict[str, str] | None = None
    dtype: str | None = None
    autocast: str | None = None
    quantization: dict[str, Any] | None = None
    attn_implementation: str | None = None
    adapter: bool | None = None
    train_rows: int | None = None
    prompt_template: str | list[dict[str, str]] | None = None
    prompt_shape: str | list[dict[str, str]] | None = None
    questions: dict[str, dict[str, Any]] | None = None
    question_template: str | dict[str, Any] | None = None
    score_prefix: str | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)

    @classmethod
    def of_model(
        cls,
        model: Any,
        tokenizer: Any,
        grid: NumberGrid,
        settings: MethodSettings,
        *,
        grid_token_ids: Sequence[Sequence[int]] | None,
        head: Head | None,
        separator: str | None,
        max_length: int | None,
        base_model: str,
        mixed_precision: str,
        train_rows: int | None = None,
        prompt_template: str | list[dict[str, str]] | None = None,
        prompt_shape: str | list[dict[str, str]] | None = None,
        score_prefix: str | None = None,
    ) -> RaftConfig:
        """What has to be known of a model beside its weights, so that it predicts alike when it is opened again.

        Args:
            model: the model as it was trained, with or without an adapter.
            tokenizer: its tokenizer.
            grid: the numbers that it answers with.
            settings: the method and its options.
            grid_token_ids: the tokens of each number; None where no row was seen.
            head: a head that is not the method's own; None for the method's own.
            separator, max_length: as the prompts were encoded.
            base_model: name or path of the model under the adapter.
            mixed_precision: as accelerate names it: bf16, fp16, or another word for the dtype of the weights.
            train_rows: how many rows it is trained on, where that is known.
            prompt_template, prompt_shape: how the prompts were written, and what they had in common.
            score_prefix: the words between a reasoning and its number, where rows have reasonings.
        """
        is_adapter = saves_adapter(model)
        # Noted by `note_base` before training.
        base = getattr(model, "adapted_base", None) if is_adapter else None
        ids = None if grid_token_ids is None else [list(one) for one in grid_token_ids]
        texts = None if ids is None else [tokenizer.decode(one, skip_special_tokens=False) for one in ids]
        return cls(
            values=list(grid.values),
            texts=list(grid.texts),
            token_ids=ids,
            token_texts=texts,
            separator=separator,
            max_length=max_length,
            **settings.method_settings(),
            head=None if head is None else type(head).__qualname__,
            base_model=base_model,
            base_is_folder=None if base is None else base.is_folder,
            base_fingerprint=None if base is None else base.fingerprint,
            dtype=str(model.dtype).removeprefix("torch."),
            autocast={"bf16": "bfloat16", "fp16": "float16"}.get(mixed_precision),
            quantization=quantization_of(model),
            attn_implementation=own_implementation(model.config.get_text_config()),
            adapter=is_adapter,
            train_rows=train_rows,
            prompt_template=prompt_template,
            prompt_shape=prompt_shape,
            score_prefix=score_prefix,
        )

    @property
    def asks_questions(self) -> bool:
        """Whether it was trained on typed questions, and so has no grid."""
        return self.question_template is not None

    @property
    def grid(self) -> NumberGrid:
        return NumberGrid(dict(zip(self.values, self.texts, strict=True)))

    def save(self, folder: str | Path) -> None:
        """Write `raft_config.json` into a folder."""
        (Path(folder) / RAFT_CONFIG_NAME).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The text of `raft_config.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> RaftConfig:
        """Read a `raft_config.json`.

        Raises:
            ValueError: the file is not a RAFT configuration.
        """
        try:
            config = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            config._check()
            known_method = config.method in METHODS
            if known_method:
                config.check_method()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a usable RAFT configuration: {error}. Save the model again with "
                "`trainer.save_model(folder)`, or upgrade if a later version wrote it: pip install -U raft-peft."
            ) from error
        if not known_method:
            raise ValueError(
                f"{path} asks for method {config.method!r}, which this version of raft-peft does not know. Upgrade: "
                "pip install -U raft-peft."
            )
        return config

    @classmethod
    def find(cls, name: str | Path, hub: Mapping[str, Any]) -> RaftConfig | None:
        """Read the `raft_config.json` of a folder or Hub repository; None where it has none.

        Args:
            name: the folder or repository.
            hub: how the Hub is reached, as `hub_options` gives it.

        Raises:
            ValueError: the file is not a RAFT configuration.
        """
        path = find_file(str(name), RAFT_CONFIG_NAME, hub)
        return None if path is None else cls.load(path)

    def settings_for(
        self, method: str | None = None, *, num_samples: int | None = None, decodes: bool = True
    ) -> dict[str, Any]:
        """What of the saved settings holds for a method, as keyword arguments of a predictor.

        Args:
            method: by which numbers are to be read; None for the saved one.
            num_samples: the samples that are asked for, beside what is saved.
            decodes: whether texts can be decoded. Where they cannot, `rail` scores the grid, though it sampled before.

        Returns:
            `method`, those of [`MethodSettings`] that it takes, `separator` and `max_length`.
        """
        asked = self.method if method is None else method
        takes = METHODS[asked].takes if asked in METHODS else ()
        settings = {name: value for name, value in self.method_settings().items() if name in takes}
        # Each method samples something else: `rail` texts, to predict; `mbr` numbers of the grid, to train.
        if asked != self.method or (asked == "rail" and not decodes):
            settings.pop("num_samples", None)
        # Another method is asked for to predict, and has no loss.
        if asked != self.method:
            settings = {name: value for name, value in settings.items() if name not in LOSS_SETTINGS}
        # What a method that does not take it has saved was never chosen.
        if asked != self.method and "renormalize" not in METHODS[self.method].takes:
            settings.pop("renormalize", None)
        # Without samples `rail` decodes no text that could be constrained.
        if asked == "rail" and settings.get("num_samples", num_samples) is None:
            settings.pop("constrained", None)
        return {**settings, "method": asked, "separator": self.separator, "max_length": self.max_length}

    def form_of_prompts(self) -> dict[str, Any]:
        """How prompts are written, as keyword arguments of a predictor."""
        return {
            "prompt_template": self.prompt_template,
            "prompt_shape": self.prompt_shape,
            "score_prefix": self.score_prefix,
        }

    def _check(self) -> None:
        """Raise a TypeError or ValueError for what no trainer wrote."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            whole_are_numbers = isinstance(value, list) and name == "values"
            type_validator(name, [float(one) for one in value] if whole_are_numbers else value, kind)
        for name in ("texts", "token_ids", "token_texts"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self.values):
                raise ValueError(f"it has {len(self.values)} values and {len(part)} {name}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} leaves no room for a prompt")
        if not self.values and not self.asks_questions:
            raise ValueError("it has no values")
        if self.values and len(self.grid) != len(self.values):
            raise ValueError("it has a value twice")

    def check_tokens(self, tokenizer: Any) -> None:
        """Make sure that the saved ids still mean the same texts.

        Raises:
            ValueError: the tokenizer is another one than in training.
        """
        if self.token_ids is None or self.token_texts is None:
            return
        for value, ids, text in zip(self.values, self.token_ids, self.token_texts, strict=True):
            found = tokenizer.decode(ids, skip_special_tokens=False)
            if found != text:
                raise ValueError(
                    f"The grid value {value:g} was trained as the token ids {ids}, {text!r}, but the tokenizer found "
                    f"reads them as {found!r}. Load the tokenizer that was saved with the adapter."
                )


def saves_adapter(model: Any) -> bool:
    """Whether a model's `save_pretrained` writes an adapter, and not the whole of it."""
    # A model that PEFT was once put on keeps its `peft_config`, which therefore tells nothing.
    return isinstance(model, PeftModel) or bool(getattr(model, "_hf_peft_config_loaded", False))


def quantization_of(model: Any) -> dict[str, Any] | None:
    """How the model under an adapter is quantized, as `raft_config.json` holds it; None where it is not."""
    found = getattr(model.config, "quantization_config", None)
    if found is None or not saves_adapter(model):
        return None
    return dict(found) if isinstance(found, dict) else found.to_dict()


def head_and_rest(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters of the head in a model's state, by their names in the head, and all others."""
    prefix = f"{HEAD_NAME}."
    head = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return head, {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}


def save_head(parameters: Mapping[str, torch.Tensor], folder: str | Path) -> None:
    """Write a head's parameters into a folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
    save_file(tensors, Path(folder) / HEAD_FILE)


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of `from_pretrained`, those that say how the Hub is reached."""
    return {name: options[name] for name in HUB_OPTIONS if name in options}


def check_there_is(name: str, hub: Mapping[str, Any]) -> None:
    """Raise a FileNotFoundError where there is neither a folder of a name nor a model of it that the Hub gives.

    The Hub is asked once for a model that it has, and again for one that it did not give.

    Args:
        name: of a folder or Hub repository.
        hub: how the Hub is reached, as `hub_options` gives it.
    """
    if Path(name).exists():
        return
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path:
        raise FileNotFoundError(
            f"There is no folder {name!r}.{nearest_folder(name)} Pass the folder of a saved model, or a Hub "
            "repository."
        )
    _check_is_on_hub(name, frozenset(hub.items()))


# An error is not kept, so that the Hub is asked again.
@cache
def _check_is_on_hub(name: str, hub: frozenset[tuple[str, Any]]) -> None:
    """Make sure that the Hub, or its cache here, has a model or an adapter of a name.

    Raises:
        FileNotFoundError: it has none, or cannot be reached.
        OSError: it has one, and does not give it to this user. The message says why.
    """
    files = (CONFIG_NAME, ADAPTER_CONFIG_NAME)
    try:
        if any(cached_file(name, file, _raise_exceptions_for_missing_entries=False, **dict(hub)) for file in files):
            return
    except OSError as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise
    raise FileNotFoundError(
        f"There is no folder {name!r}, and the Hub gives no model of this name, or cannot be reached."
        f"{nearest_folder(name)} Pass the folder of a saved model, or a Hub repository."
    )


def nearest_folder(name: str) -> str:
    """A question that names the folder whose name is like one that does not exist, or nothing."""
    parent = Path(name).expanduser().parent
    there = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    meant = difflib.get_close_matches(Path(name).name, there, n=1)
    return f" Is {str(parent / meant[0])!r} meant?" if meant else ""


def find_file(name: str, filename: str, hub: Mapping[str, Any]) -> str | None:
    """The path of a file of a folder or Hub repository, or None where it has none."""
    if Path(name).is_dir():
        path = Path(name) / filename
        return str(path) if path.is_file() else None
    try:
        return cached_file(
            name,
            filename,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
