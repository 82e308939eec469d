"""A command of the shell: its words, and its errors and warnings as lines that name its options."""

from __future__ import annotations

import ast
import difflib
import itertools
import logging
import os
import platform
import re
import shlex
import sys
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What a user's settings, files and machine can cause. All else is a mistake of ours or of a library beneath.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError)

# What is done in Python, and how the command line does the same.
_DONE_BY = {
    "RegressionAwareTrainer.save_model wrote": "raft-peft train wrote",
    "Leave out `peft_config`": "Set `--use_peft false`",
    "`predictor.calibrate(prompts, labels)`": "`raft-peft calibrate ROWS --model FOLDER`",
    "`predictor.calibrate_questions(rows)`": "`raft-peft calibrate ROWS --model FOLDER`",
    "`predictor.calibrate(prompts, labels, label_map='affine')`": (
        "`raft-peft calibrate ROWS --model FOLDER --label-map affine`"
    ),
    "`trainer.train(resume_from_checkpoint=True)`": "`--resume_from_checkpoint true`",
    "`private=False`": "`--public`",
    "`merge_and_save(folder, new_folder)`": "`raft-peft merge FOLDER NEW_FOLDER`",
    # Groups are named by `raft-peft calibrate`, which other commands have no option for.
    "or without `groups`": "or without `--group-column`",
    "or one name for each prompt as `groups`": "or calibrate without `--group-column`",
    "Pass `groups`, one name for each prompt or the column that holds it": (
        "Calibrate with `--group-column`, the column of their names"
    ),
}
# The files whose warnings are lines.
PACKAGE = str(Path(__file__).parent)

# Arguments of Python that are options of another name.
_INSTEAD = {"quantization_config": ("load_in_4bit", "quantization"), "groups": ("group_column",)}

# Columns of rows that have the name of an option, which is meant where it has a value.
_COLUMNS = ("questions",)

_NAMED = re.compile(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`")


def run_command(
    command: str,
    words: Sequence[str],
    parser_of: Callable[[], ArgumentParser],
    run: Callable[[Any, Sequence[str]], None],
) -> int:
    """Run a command and return the exit code.

    An error of the input is one line, not a traceback. An internal one has its traceback, and ends with how to report
    it. Where an error or a warning names an argument of Python, `` `max_length=512` ``, it is printed as the option,
    `--max-length 512`.

    Args:
        command: its name.
        words: what stands behind the name on the command line.
        parser_of: makes the parser of its options.
        run: carries it out, given the parser and the words.
    """
    parser: ArgumentParser | None = None

    def spelled(text: str) -> str:
        return text if parser is None else with_options(text, parser)

    name = f"raft-peft {command}{_process()}"
    try:
        with _libraries_hushed(), _warnings_spelled(spelled):
            parser = parser_of()
            run(parser, as_meant(words, parser))
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        return 130
    except _EXPLAINED as error:
        print(f"{name}: {spelled(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    except Exception as error:
        if _is_out_of_memory(error):
            print(
                f"{name}: there is not enough memory: {error}\nUse smaller batches, shorter prompts, quantized "
                "weights or a smaller model; raft-peft plan shows what training takes.",
                file=sys.stderr,
            )
            return 1
        traceback.print_exc()
        print(_how_to_report([command, *words], error), file=sys.stderr)
        return 1
    return 0


def as_meant(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The words of a command line as a parser reads them as they were meant.

    An option may be written with hyphens or underscores. A grid may begin with a minus sign, `--grid -4..4`, which
    argparse would take for the name of an option.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    meant: list[str] = []
    for index, word in enumerate(words):
        if word == "--":
            return meant + list(words[index:])
        if meant and meant[-1] == "--grid" and re.match(r"-[\d.]", word):
            meant[-1] = f"--grid={word}"
            continue
        name, equals, value = word.partition("=")
        hyphened = name.replace("_", "-")
        meant.append(hyphened + equals + value if name not in known and hyphened in known else word)
    return meant


def check_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Refuse options that do not exist, of which argparse would say first what else is missing.

    Args:
        parser: knows those that do.
        words: the words of a command line.

    Raises:
        ValueError: there is no such option.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    options = list(itertools.takewhile(lambda word: word != "--", words))
    # To argparse a word with a space is a value.
    unknown = [word for word in options if word.startswith("--") and not {word, word.partition("=")[0]} & known]
    unknown = [word for word in unknown if " " not in word.partition("=")[0]]
    if unknown:
        raise unknown_options(parser, unknown)


def unknown_options(parser: ArgumentParser, words: Sequence[str], where: str = "") -> ValueError:
    """An error that names options which do not exist, and those that may be meant; or arguments that are too many.

    Args:
        parser: knows those that do.
        words: the words that it did not take, values of such options among them.
        where: they stand, as ", which FILE names".
    """
    known = [option for action in parser._actions for option in action.option_strings]
    options = [word for word in words if word.startswith("-")]
    if not options:
        return ValueError(f"Too many arguments: {shlex.join(words)}. {parser.prog} --help shows which there are.")
    named = []
    for word in options:
        name = word.partition("=")[0]
        meant = difflib.get_close_matches(name, known, n=1)
        named.append(f"{name} (is {meant[0]} meant?)" if meant else name)
    return ValueError(f"There is no option {', '.join(named)}{where}. {parser.prog} --help lists them.")


def with_options(text: str, parser: ArgumentParser) -> str:
    """A message whose arguments of Python, in backticks, are written as the options of a command.

    Args:
        text: such as "Set `renormalize=True`." Names that are no options of the parser stay.
        parser: of the command.
    """
    options: dict[str, str] = {}
    flags: set[str] = set()
    for action in parser._actions:
        if action.option_strings:
            options.setdefault(action.dest, action.option_strings[0])
            flags |= {action.dest} if action.nargs == 0 else set()

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        name = next((one for one in (name, *_INSTEAD.get(name, ())) if one in options), "")
        if not name or (value is None and name in _COLUMNS):
            return match[0]
        if value is None or (name in flags and value == "True"):
            return f"`{options[name]}`"
        return f"`{options[name]} {_word(value)}`"

    for call, words in _DONE_BY.items():
        text = text.replace(call, words)
    return _NAMED.sub(option, text)


def _word(value: str) -> str:
    """A value of Python as a word of the command line."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    if isinstance(read, bool):
        return str(read).lower()
    if isinstance(read, dict):
        return ",".join(f"{number}={text}" for number, text in read.items())
    if isinstance(read, list | tuple):
        return ",".join(map(str, read))
    return shlex.quote(read) if isinstance(read, str) else value


def _process() -> str:
    """Which process of several this is, for messages that each of them writes."""
    return f", process {os.environ.get('RANK', 0)}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""


def _is_out_of_memory(error: Exception) -> bool:
    # By name, since torch need not be loaded here.
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _how_to_report(words: Sequence[str], error: Exception) -> str:
    """What stands behind the traceback of an internal error."""
    versions = {"Python": platform.python_version()}
    for name in ("raft-peft", "torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return (
        f"\nraft-peft {words[0]}: an internal error, {type(error).__name__}. This is a mistake in raft-peft: your "
        "input is right, or a message should have said what is wrong with it. Please open an issue in raft-peft's "
        "repository (under Issues) with the traceback above, two rows like yours, and\n"
        f"  command: raft-peft {shlex.join(words)}\n"
        f"  versions: {', '.join(f'{name} {number}' for name, number in versions.items())}, {platform.platform()}"
    )


@contextmanager
def _libraries_hushed() -> Iterator[None]:
    """Without what the libraries beneath say to those who write against them, unless Python is told to warn (`-W`)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")
        yield


@contextmanager
def _warnings_spelled(spelled: Callable[[str], str]) -> Iterator[None]:
    """Print this package's warnings as lines, written by a function, and those of others as Python does."""
    show, make = warnings.showwarning, logging.getLogRecordFactory()

    def show_line(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        if filename.startswith(PACKAGE):
            print(spelled(str(message)), file=sys.stderr)
        else:
            show(message, category, filename, *rest, **named)

    def make_spelled(*args: Any, **named: Any) -> logging.LogRecord:
        record = make(*args, **named)
        if record.name.partition(".")[0] == "raft_peft":
            record.msg, record.args = spelled(record.getMessage()), ()
        return record

    with warnings.catch_warnings():
        warnings.showwarning = show_line
        logging.setLogRecordFactory(make_spelled)
        try:
            yield
        finally:
            logging.setLogRecordFactory(make)
