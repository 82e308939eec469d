"""The page that goes through the paper: no number is left out, and what a row names is there."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from raft_peft.cli.compare import parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "paper.md"
# How many of each the paper has.
LAST = {"Definitions": 2, "Equations": 15, "Lemmas": 5, "Tables": 21, "Figures": 7}


@cache
def rows(section):
    """The cells of each row of a section's table, without its heading."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("section", "last"), LAST.items())
def test_every_number_has_its_row(section, last):
    assert [cells[0] for cells in rows(section)] == [str(number) for number in range(1, last + 1)]
    columns = 5 if section in ("Tables", "Figures") else 4
    assert all(len(cells) == columns and all(cells[1:3]) for cells in rows(section))


def test_what_a_link_names_is_in_its_file():
    links = re.findall(r"\[`(\w+)`\]\((\.\./[^)#]+\.py)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 70
    for name, path in links:
        code = (PAGE.parent / path).read_text(encoding="utf-8")
        defined = rf'^ *(?:(?:def|class) {name}\b|{name}(?::[^=\n]*)? = |"{name}": )'
        assert re.search(defined, code, flags=re.MULTILINE), f"{path} defines no {name}"


@pytest.mark.parametrize("section", ["Definitions", "Equations", "Lemmas"])
def test_mathematics_is_tested(section):
    assert all("/tests/" in cells[3] for cells in rows(section))


COMMANDS = [
    pytest.param(command, id=f"{section[:-1]} {cells[0]}")
    for section in ("Tables", "Figures")
    for cells in rows(section)
    for command in re.findall(r"`(--[^`]+)`", cells[3])
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path):
    words = ["--model", "model", "--output_dir", str(tmp_path), *shlex.split(command)]
    settings, unknown = parser().parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    assert not unknown
    assert settings.compared_methods()


def test_every_table_and_figure_is_repeated_or_has_a_reason():
    for section in ("Tables", "Figures"):
        for number, _, _, command, measured in rows(section):
            assert "--" in command or "no figures in it" in command or re.match("as (Table|Figure)", command)
            assert measured or "no figures in it" in command, f"{section} {number} has nothing measured, and no —"
