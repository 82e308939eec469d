"""Which weights are trained: that the optimizer knows them, and that they are what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME

from raft_peft.methods.saved_folder import HEAD_NAME
from raft_peft.methods.saving import refuse_folder_of_base
from raft_peft.training.number_tokens import rows_saved_alone


def active_adapter(model: Any) -> str | None:
    """The name of the adapter at work in a model; None where it has none.

    Raises:
        ValueError: several are at work at once, which a saved folder could not bring back.
    """
    if not isinstance(model, PeftModel):
        return None
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"The adapters {', '.join(map(repr, active))} are active at the same time, and a saved folder is opened "
            "with one. Activate the one to train with `model.set_adapter(name)`; or make one of them first, with "
            "`model.add_weighted_adapter(...)`, or with `model.merge_and_unload()` and a `peft_config`."
        )
    # It keeps the name that it was given first where another was activated on the model under it.
    model.active_adapter = active[0]
    return active[0]


def refuse_untrainable(model: Any, output_dir: str) -> None:
    """Make sure that there are weights to train, and that they can be saved.

    Raises:
        ValueError: all weights are frozen, an adapter that is at work is, or the adapter would be saved into the
            folder of its base model.
    """
    adapter = active_adapter(model)
    refuse_folder_of_base(output_dir, model)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if adapter is None:
        if not trained:
            raise ValueError(
                "All weights of the model are frozen, so there is nothing to train. Call "
                "`model.requires_grad_(True)`, or pass `peft_config`, such as LoraConfig()."
            )
        return
    of_model = [name for name in trained if not name.startswith(f"{HEAD_NAME}.")]
    # The parameters of an adapter have its name as a part of theirs, those of a few kinds of adapter excepted.
    others = [name for name in model.peft_config if name != adapter]
    is_other = any(other in name.split(".") for name in of_model for other in others)
    is_trained = any(adapter in name.split(".") for name in of_model) or not is_other
    if not of_model or not is_trained:
        raise ValueError(
            f"The weights of the adapter {adapter!r} are frozen: PEFT opens a saved adapter like this by default. "
            "Open it with is_trainable=True (AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True)), "
            f"or call `model.set_adapter({adapter!r})`."
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: Any, method: str) -> None:
    """Make sure that an optimizer of the user's knows all weights that are trained.

    Args:
        optimizer: that the user made; None for the trainer's own.
        model: with its adapter and its head.
        method: the name of the method at work.

    Raises:
        ValueError: it misses some, since it was made before the adapter or the head.
    """
    if optimizer is None:
        return
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    missed = [name for name, weight in trained.items() if id(weight) not in known]
    if not missed:
        return
    cure = "Pass `optimizer_cls_and_kwargs`, such as (torch.optim.AdamW, {'lr': 2e-4}), or name one with `optim`"
    if all(name.startswith(f"{HEAD_NAME}.") for name in missed):
        raise ValueError(
            f"The head of method {method!r} has parameters that the optimizer you pass does not know. {cure}."
        )
    raise ValueError(
        f"The optimizer you pass does not know {len(missed)} of the {len(trained)} tensors that are trained, such as "
        f"{missed[0]}: it was made before the adapter was. {cure}; or make the adapter first, with "
        "`get_peft_model(model, peft_config)`, and the optimizer of its parameters. Weights that are not to be "
        "trained need requires_grad=False."
    )


@contextmanager
def saved_as_trained(model: Any) -> Iterator[None]:
    """Let `save_pretrained` write the adapter at work, and it alone, to the root of a folder.

    PEFT writes every adapter: the one named `default` to the root, and those of other names to folders of theirs. What
    opens a folder, or resumes from it, reads the root.
    """
    with rows_saved_alone(model):
        adapter = active_adapter(model)
        if adapter is None:
            yield
            return
        before = vars(model).get("save_pretrained")
        write = model.save_pretrained

        def save_pretrained(folder: str | Path, *args: Any, **kwargs: Any) -> None:
            refuse_folder_of_base(folder, model)
            write(folder, *args, **{**kwargs, "selected_adapters": [adapter]})
            if adapter != "default" and kwargs.get("is_main_process", True):
                _move_up(Path(folder), adapter)

        model.save_pretrained = save_pretrained
        try:
            yield
        finally:
            if before is None:
                del model.save_pretrained
            else:
                model.save_pretrained = before


def _move_up(folder: Path, name: str) -> None:
    for file in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):
        (folder / name / file).replace(folder / file)
    if not any((folder / name).iterdir()):
        (folder / name).rmdir()
