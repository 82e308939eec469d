"""The folder of a Space."""

import shutil
from pathlib import Path

import pytest
import yaml

from raft_peft import __version__
from raft_peft.cli import main
from raft_peft.grid import NumberGrid
from raft_peft.serving.space import write_space


def test_a_model_of_the_hub(tmp_path, capsys):
    space = tmp_path / "space"
    assert main(["serve", "me/stars", "--adapter", "tone=me/tone", "--space", str(space)]) == 0
    assert "hf upload" in capsys.readouterr().out
    app = (space / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "open_models({'stars': 'me/stars', 'tone': 'me/tone'})" in app and "page=True" in app
    assert (space / "requirements.txt").read_text() == f"raft-peft[page]=={__version__}\n"
    _, header, text = (space / "README.md").read_text().split("---\n", 2)
    read = yaml.safe_load(header)
    assert read["sdk"] == "gradio" and read["app_file"] == "app.py" and read["python_version"] == "3.11"
    assert read["models"] == ["me/stars", "me/tone"] and "stars and tone" in text
    assert main(["serve", "me/stars", "--space", str(space)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_folder_goes_along(folders, tmp_path):
    base = Path(folders["stars"]).parent / "base"
    (tmp_path / "base" / "checkpoint-2").mkdir(parents=True)
    shutil.copytree(base, tmp_path / "base", dirs_exist_ok=True)
    (tmp_path / "base" / "checkpoint-2" / "model.safetensors").touch()
    written = write_space(tmp_path / "space", {"base": str(tmp_path / "base")}, NumberGrid([1, 2]))
    assert {"README.md", "app.py", "models/base/config.json", "models/base/model.safetensors"} <= set(written)
    assert not any("checkpoint" in path for path in written)
    assert "open_models({'base': 'models/base'}, {1.0: '1', 2.0: '2'})" in (tmp_path / "space" / "app.py").read_text()


def test_an_adapter_of_a_folder_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"was trained on the folder .* which a Space does not have"):
        write_space(tmp_path / "space", {"stars": folders["stars"]})
    assert not (tmp_path / "space").exists()
