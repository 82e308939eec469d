"""A server with its page as the folder of a Space of Hugging Face."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import validate_repo_id

from raft_peft import __version__
from raft_peft.grid import NumberGrid
from raft_peft.prediction.opening import base_of_adapter
from raft_peft.prediction.sharing import shared_files

_APP = '''\
"""A page that shows what a model answers, and the server behind it."""

import uvicorn

from raft_peft.serving.app import create_app
from raft_peft.serving.models import open_models

models = open_models({folders}{grid})
# A Space shows what listens on this port.
uvicorn.run(create_app(models, page=True), host="0.0.0.0", port=7860)
'''
_TEXT = """\
What {names} answers to a text, as a number with its distribution, beside the base model.

The page is that of `raft-peft serve`, whose routes are here, too: `/docs` describes them.
"""


def write_space(folder: str | Path, models: Mapping[str, str], grid: NumberGrid | None = None) -> list[str]:
    """Write `app.py`, `requirements.txt` and `README.md` of a Space, and the models that are folders here.

    Args:
        folder: of the Space; made where there is none.
        models: folders or repositories of the Hub, by their names.
        grid: of the first, where it was not trained here.

    Returns:
        The files that were written.

    Raises:
        FileExistsError: the folder holds something already.
        ValueError: an adapter's base model is a folder, which a Space does not have; or a name is none.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} is not empty. Name a new folder for the Space.")
    on_hub = [_hub_names(model) for model in models.values()]
    folders = {}
    for name, model in models.items():
        if not Path(model).is_dir():
            folders[name] = model
            continue
        folders[name] = f"models/{Path(name).name}"
        for path, file in shared_files(Path(model)).items():
            copy = folder / folders[name] / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    folder.mkdir(parents=True, exist_ok=True)
    given = "" if grid is None else f", {dict(grid)!r}"
    texts = {
        "app.py": _APP.format(folders=folders, grid=given),
        "requirements.txt": f"raft-peft[page]=={__version__}\n",
        "README.md": _header(list(models), [name for names in on_hub for name in names])
        + _TEXT.format(names=" and ".join(models)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _hub_names(model: str) -> list[str]:
    """The repositories of the Hub that a model needs: its own, and that of an adapter's base.

    Raises:
        ValueError: there is no such name; or the base is a folder.
    """
    if not Path(model).is_dir():
        validate_repo_id(model)
        return [model]
    base = base_of_adapter(model)
    if base is None:
        return []
    if Path(base).is_dir() or Path(base).is_absolute():
        raise ValueError(
            f"The adapter in {model!r} was trained on the folder {base!r}, which a Space does not have. Run "
            f"`raft-peft push {model} OWNER/NAME --base-model NAME`, and write the Space for OWNER/NAME. Or merge it: "
            f"`raft-peft merge {model} NEW_FOLDER`."
        )
    return [base]


def _header(names: list[str], on_hub: list[str]) -> str:
    """What the Hub reads of a Space, as YAML at the top of its README."""
    header = SpaceCardData(
        title=" and ".join(names),
        emoji="📏",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=_gradio(),
        # The Hub's own default is older than what raft-peft needs.
        python_version="3.11",
        app_file="app.py",
        models=on_hub or None,
        tags=["raft-peft", "text-regression"],
    )
    return f"---\n{header.to_yaml()}\n---\n\n"


def _gradio() -> str | None:
    """The version of Gradio that is installed; None where there is none, which is the newest on the Hub."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return None
