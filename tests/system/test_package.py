import subprocess
import sys

import raft_peft


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_loads_neither_torch_nor_transformers():
    loaded = run("import raft_peft, sys; print({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules))")
    assert loaded.strip() == "set()"


def test_the_grid_needs_none_of_them():
    loaded = run("from raft_peft import NumberGrid; import sys; print({'torch', 'transformers'} & set(sys.modules))")
    assert loaded.strip() == "set()"


def test_the_help_of_a_command_needs_none_of_them():
    """Of `train` and `compare` it does: their options are those of Trainer and TRL."""
    names = ("predict", "evaluate", "calibrate", "plan", "merge", "push")
    loaded = run(
        f"from raft_peft.cli.command import COMMANDS\nfor name in {names}: COMMANDS[name].parser().format_help()\n"
        "import sys; print({'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules))"
    )
    assert loaded.strip() == "set()"


def test_every_public_name_can_be_had():
    assert {name: getattr(raft_peft, name).__name__ for name in raft_peft.__all__} == {
        name: name for name in raft_peft.__all__
    }
    assert set(raft_peft.__all__) <= set(dir(raft_peft))


def test_an_unknown_name():
    import pytest

    with pytest.raises(AttributeError, match="no attribute 'Regresion'"):
        raft_peft.Regresion  # noqa: B018
