"""The model of a folder or Hub repository, with its adapter, its head and the precision of its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from raft_peft.data.prompt_form import warn_of_another_template
from raft_peft.forward.attention import DENSE
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.methods import MethodSettings
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.head_origin import (
    has_parameters,
    head_origin,
    load_parameters,
    new_head,
    origin_difference,
    own_head_of,
)
from raft_peft.methods.pretrained import (
    add_adapter,
    config_of_adapter,
    open_adapter,
    open_language_model,
    open_tokenizer,
    with_dtype,
)
from raft_peft.methods.saved_folder import (
    HEAD_FILE,
    RAFT_CONFIG_NAME,
    RaftConfig,
    check_there_is,
    find_file,
    hub_options,
)
from raft_peft.methods.saving import check_one_model
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.questions.calibration import QuestionCalibration


def open_saved(
    name: str,
    grid: Iterable[float] | Mapping[float, str] | NumberGrid | None,
    settings: Mapping[str, Any],
    head: Head | None,
    *,
    dtype: str | torch.dtype | None,
    quantization_config: Any,
    device_map: Any,
    beside: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of a [`RegressionPredictor`], opened: model, tokenizer, grid, head and settings.

    Args:
        name: a folder or Hub repository.
        grid: the numbers; None for those that were saved, if any.
        settings: of a predictor, instead of those that were saved.
        head: of the user's own; None for the method's.
        dtype, quantization_config, device_map: as in `open_as_trained`.
        beside: a model with adapters, on whose base this adapter is opened too; None to open a model.
        options: of the model's `from_pretrained`.

    Raises:
        ValueError: as in [`RegressionPredictor.from_pretrained`].
    """
    hub = hub_options(options)
    check_there_is(name, hub)
    saved = RaftConfig.find(name, hub)
    takes_saved_grid = grid is None
    if grid is None and saved is not None and saved.values:
        grid = saved.grid
    numbers = None if grid is None else NumberGrid(grid)
    tokenizer = open_tokenizer(name, trust_remote_code=options.get("trust_remote_code", False), **hub)
    if saved is not None:
        if takes_saved_grid:
            saved.check_tokens(tokenizer)
        settings = settings_beside_saved(name, saved, settings, head)
    of_method = check_settings(settings)
    if numbers is not None:
        check_grid(of_method, numbers, head)
    if beside is not None:
        model = beside
        add_adapter(model, name, tokenizer, saved, **hub)
    else:
        model = open_as_trained(
            name,
            tokenizer,
            hub,
            saved,
            dtype=dtype,
            quantization_config=quantization_config,
            device_map=device_map,
            **options,
        )
    if numbers is not None:
        head = open_head(name, hub, saved, model, tokenizer, numbers, settings, head)
    return {**settings, "model": model, "tokenizer": tokenizer, "grid": numbers, "head": head}


def base_of_adapter(name: str, **hub: Any) -> str | None:
    """The name of the base model of an adapter's folder or repository; None where it holds a whole model.

    Raises:
        OSError: there is no such folder.
    """
    check_there_is(name, hub)
    if find_file(name, ADAPTER_CONFIG_NAME, hub) is None:
        return None
    return config_of_adapter(name, RaftConfig.find(name, hub), **hub).base_model_name_or_path


def saved_calibrations(name: str, hub: Mapping[str, Any]) -> tuple[Calibration | None, QuestionCalibration | None]:
    """The calibrations of a folder or Hub repository: of its one number and of its questions; None where it has none.

    Args:
        name: the folder or repository.
        hub: how the Hub is reached, as `hub_options` gives it.

    Raises:
        ValueError: a file that is no calibration.
    """
    return Calibration.find(name, hub), QuestionCalibration.find(name, hub)


def check_grid_is_known(name: str, grid: Any, hub: Mapping[str, Any]) -> None:
    """Refuse to predict numbers with a model whose grid is neither given nor saved.

    Raises:
        ValueError: it was saved without any, or for typed questions.
    """
    if grid is not None:
        return
    check_there_is(name, hub)
    saved = RaftConfig.find(name, hub)
    if saved is None:
        raise ValueError(
            f"{name!r} has no {RAFT_CONFIG_NAME}, so its grid is not known. Pass the numbers, such as "
            "`grid=[1, 2, 3, 4, 5]`, or a folder that RegressionAwareTrainer.save_model wrote."
        )
    if not saved.values:
        raise ValueError(
            f"{name!r} was trained on typed questions, and has no grid to predict numbers from. Pass the numbers, "
            "such as `grid=[1, 2, 3, 4, 5]`, or ask it questions in Python, with `RegressionPredictor.decide`."
        )


def check_settings(settings: Mapping[str, Any]) -> MethodSettings:
    """Those of [`MethodSettings`] among a predictor's settings.

    Raises:
        ValueError: they do not exist, or do not go together.
    """
    of_method = MethodSettings(
        **{one.name: settings[one.name] for one in fields(MethodSettings) if one.name in settings}
    )
    of_method.check_method()
    return of_method


def settings_beside_saved(name: str, saved: RaftConfig, asked: Mapping[str, Any], head: Head | None) -> dict[str, Any]:
    """The settings of a predictor: those that are asked for, and else those of training.

    Raises:
        ValueError: the model was trained with a head of the user's, and there is none.
    """
    if saved.head is not None and head is None:
        raise ValueError(
            f"{name!r} was trained with a head of your own, {saved.head}. Pass `head=`, made as it was in training; "
            "its parameters are loaded."
        )
    warn_of_another_template(asked.get("prompt_template"), saved.prompt_template)
    as_saved = saved.settings_for(asked.get("method"), num_samples=asked.get("num_samples"))
    of_model = {"autocast": saved.autocast, "grid_token_ids": saved.token_ids, **saved.form_of_prompts()}
    of_model |= {"questions": saved.questions, "question_template": saved.question_template}
    return {**as_saved, **of_model, **asked}


def open_as_trained(
    name: str,
    tokenizer: Any,
    hub: Mapping[str, Any],
    saved: RaftConfig | None,
    *,
    dtype: str | torch.dtype | None,
    quantization_config: Any,
    device_map: Any,
    **options: Any,
) -> Any:
    """The model of a folder or Hub repository, as it was in training where nothing else is asked for.

    Args:
        name, tokenizer, hub, saved, options: as in `open_model`.
        dtype: of the weights; None for that of training.
        quantization_config: None for that of training, False for none.
        device_map: None for all on the accelerator where there is one, else on the CPU.

    Raises:
        ValueError: as in `open_model`.
    """
    check_one_model(name, hub, saved)
    options = with_dtype({**options, "dtype": dtype})
    dtype = options.pop("dtype")
    if saved is not None:
        dtype = saved.dtype if dtype is None else dtype
        # Another attention, such as a kernel of the Hub, may not be installed here.
        if saved.attn_implementation in DENSE:
            options.setdefault("attn_implementation", saved.attn_implementation)
        if quantization_config is None:
            options["quantization"] = saved.quantization
    if dtype is not None:
        options["dtype"] = dtype
    if quantization_config:
        options["quantization_config"] = quantization_config
    if device_map is None and torch.accelerator.is_available():
        device_map = {"": torch.accelerator.current_accelerator()}
    if device_map is not None:
        options["device_map"] = device_map
    return open_model(name, tokenizer, hub, saved, **options)


def open_head(
    name: str,
    hub: Mapping[str, Any],
    saved: RaftConfig | None,
    model: Any,
    tokenizer: Any,
    grid: NumberGrid,
    settings: Mapping[str, Any],
    head: Head | None,
) -> Head | None:
    """The head with its parameters, out of a folder or Hub repository; as given where it has none to load.

    Args:
        name, hub: as in `open_model`.
        saved: its `raft_config.json`; None where it has none.
        model, tokenizer, grid: those that the head is for.
        settings: of a predictor, with the method among them.
        head: of the user's own; None for the method's.

    Raises:
        ValueError: no parameters are saved; they belong to other settings or another grid; or they do not fit.
    """
    own = own_head_of(head)
    of_method = check_settings(settings)
    if head is None:
        ids = settings.get("grid_token_ids")
        head = new_head(model, tokenizer, grid, of_method, None if ids is None else tuple(map(tuple, ids)))
    if not has_parameters(head):
        return None if own is None else head
    path = find_file(name, HEAD_FILE, hub)
    if path is None:
        raise ValueError(
            f"{name!r} has no {HEAD_FILE}, and the head of method {of_method.method!r} has parameters. Load a "
            "folder that RegressionAwareTrainer.save_model wrote with it, or use `method='rail'`."
        )
    if saved is not None:
        then = head_origin(saved, saved.grid, tokenizer, own_head=saved.head)
        difference = origin_difference(then, head_origin(of_method, grid, tokenizer, own_head=own))
        if difference is not None:
            raise ValueError(
                f"The head of {name!r} was trained for {difference}, and its parameters mean nothing else. Leave the "
                "settings and the grid as they were saved, or train with the new ones."
            )
    load_parameters(head, path, of_method.method)
    return head


def open_model(
    name: str,
    tokenizer: Any,
    hub: Mapping[str, Any],
    saved: RaftConfig | None,
    *,
    quantization: Mapping[str, Any] | None = None,
    dequantize: bool = False,
    **options: Any,
) -> Any:
    """The model of a folder or Hub repository.

    Args:
        name: the folder or repository.
        tokenizer: of the model; one that was saved with an adapter may have tokens that the base model lacks.
        hub: how the Hub is reached: `revision`, `token` and so on.
        saved: its `raft_config.json`; None where it has none.
        quantization: of the model under an adapter, where its own folder does not hold it quantized already.
        dequantize: whether the model under an adapter is made dense again, with the values that quantization left.
        options: of `from_pretrained`, those of `hub` among them.

    Raises:
        ValueError: it is no language model, or an adapter that cannot be opened as it was trained.
        OSError: the base model of an adapter is not found.
    """
    if find_file(name, ADAPTER_CONFIG_NAME, hub) is None:
        return open_language_model(name, _from_pretrained, **options)
    return open_adapter(
        name, tokenizer, saved, _from_pretrained, quantization=quantization, dequantize=dequantize, **options
    )


def _from_pretrained(name: str, **options: Any) -> Any:
    """A language model, or one that also reads images, where its architecture has no class for text alone."""
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        return AutoModelForImageTextToText.from_pretrained(name, **options)
