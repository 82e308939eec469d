"""Words of a command line as they are meant, and messages of Python as the command line says them."""

import io
import logging
import warnings
from argparse import ArgumentParser

import pytest
from tqdm import tqdm

from raft_peft.console import as_meant, run_command, with_options
from raft_peft.messages import warn


@pytest.fixture
def parser():
    parser = ArgumentParser("raft-peft test")
    for name in ("--grid", "--max-length", "--prompt-template", "--attention", "--quantization", "--lora_r"):
        parser.add_argument(name)
    parser.add_argument("--distribution", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--grid", "-4..4"], ["--grid=-4..4"]),
        (["--grid", "-1,0,1", "rows"], ["--grid=-1,0,1", "rows"]),
        (["--grid", "-.5..1"], ["--grid=-.5..1"]),
        (["--grid", "-x"], ["--grid", "-x"]),
        (["--attention", "-4"], ["--attention", "-4"]),
        (["--max_length", "5", "--prompt_template={a_b}"], ["--max-length", "5", "--prompt-template={a_b}"]),
        (["--lora_r", "4", "--no_such", "a_b"], ["--lora_r", "4", "--no_such", "a_b"]),
        (["--", "--grid", "-4..4"], ["--", "--grid", "-4..4"]),
    ],
)
def test_words(parser, words, meant):
    assert as_meant(words, parser) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Raise `max_length`.", "Raise `--max-length`."),
        ("Set `attention='causal'`.", "Set `--attention causal`."),
        ("Set `attention='two words'`.", "Set `--attention 'two words'`."),
        ("Set `lora_r=True`.", "Set `--lora_r true`."),
        ("Set `distribution=True`, not `distribution`.", "Set `--distribution`, not `--distribution`."),
        ("as `grid=[1, 2, 3]`", "as `--grid 1,2,3`"),
        ("as `grid={1: 'A', 2: 'B'}`", "as `--grid 1=A,2=B`"),
        ("The column `prompt` and max_length stay.", "The column `prompt` and max_length stay."),
        ("Leave out `peft_config`.", "Set `--use_peft false`."),
        ("A folder that RegressionAwareTrainer.save_model wrote.", "A folder that raft-peft train wrote."),
        ("Set `quantization_config`.", "Set `--quantization`."),
        ("Calibrate on it, or without `groups`.", "Calibrate on it, or without `--group-column`."),
        ("First `predictor.calibrate(prompts, labels)`.", "First `raft-peft calibrate ROWS --model FOLDER`."),
    ],
)
def test_messages(parser, text, said):
    assert with_options(text, parser) == said


def test_warnings_are_lines_of_the_command_line(parser, capsys, caplog):
    def run(parser, words):
        logging.getLogger("raft_peft.data").warning("Raise `max_length`.")
        logging.getLogger("another").warning("Raise `max_length`.")
        warnings.warn("Set `attention='causal'`.", stacklevel=1)
        raise ValueError("Set `grid=[1, 2]`.")

    warned_here = __file__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raft_peft.console.PACKAGE", warned_here)
        assert run_command("test", [], lambda: parser, run) == 1
    assert caplog.messages == ["Raise `--max-length`.", "Raise `max_length`."]
    assert capsys.readouterr().err == "Set `--attention causal`.\nraft-peft test: Set `--grid 1,2`.\n"
    logging.getLogger("raft_peft.data").warning("Raise `max_length`.")
    assert caplog.messages[-1] == "Raise `max_length`."


def test_a_warning_has_a_line_of_its_own_beside_a_progress_bar(caplog):
    drawn = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", drawn)
        with tqdm(total=2, file=drawn) as bar:
            handler = logging.StreamHandler(drawn)
            logger = logging.getLogger("raft_peft.test")
            logger.addHandler(handler)
            warn(logger, "It is odd.")
            logger.removeHandler(handler)
            bar.update()
    assert "\rIt is odd.\n" in drawn.getvalue()


def test_each_of_several_processes_says_which_it_is(parser, capsys, monkeypatch):
    def run(parser, words):
        raise ValueError("no")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run_command("train", [], lambda: parser, run) == 1
    assert capsys.readouterr().err == "raft-peft train, process 1: no\n"
