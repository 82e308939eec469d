"""The options of a training run, from a command line and a YAML file, and what is wrong with them."""

from __future__ import annotations

import difflib
import json
import os
import re
from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from trl import TrlParser


def parse_options(parser: TrlParser, arguments: Sequence[str] | None = None) -> list[Any]:
    """The options of a command line, and of the YAML file that it names by `--config`, which gives way to them.

    A value in the file means what the same words mean on the command line. So `no`, `off`, `yes` and `on` are words
    there, as in YAML 1.2, and truth values for the options that take these.

    Returns:
        An object of each of the parser's dataclasses.

    Raises:
        ValueError: options that do not exist, or a file that cannot be read as options.
        FileNotFoundError: there is no such file.
    """
    config = ArgumentParser(parser.prog, add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    named, words = config.parse_known_args(arguments)
    for action in parser._actions:
        if action.dest.endswith("_kwargs") and action.type in (str, dict):
            action.type = _json_object
    if named.config is not None:
        _set_defaults(parser, named.config)
    *parsed, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        raise unknown_options(parser, [word for word in unknown if word.startswith("-")] or unknown)
    return parsed


def unknown_options(parser: ArgumentParser, words: Sequence[str], where: str = "") -> ValueError:
    """An error that names options which do not exist, and those that may be meant."""
    known = [option for action in parser._actions for option in action.option_strings]
    named = []
    for word in words:
        name = word.partition("=")[0]
        meant = difflib.get_close_matches(name, known, n=1)
        named.append(f"{name} (is {meant[0]} meant?)" if meant else name)
    return ValueError(f"There is no option {', '.join(named)}{where}. {parser.prog} --help lists them.")


def _json_object(text: str) -> str:
    """The text of an object, as the settings take it."""
    try:
        fine = isinstance(json.loads(text), dict)
    except ValueError:
        fine = False
    if not fine:
        raise ArgumentTypeError(f"{text!r} is no JSON object. Write names and values, as '{{\"name\": 1}}'")
    return text


class _Yaml12Loader(yaml.SafeLoader):
    """Reads YAML whose only truth values are `true` and `false`, and which names nothing twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_TRUTH = "tag:yaml.org,2002:bool"
_Yaml12Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _TRUTH]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(_TRUTH, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _set_defaults(parser: TrlParser, path: str) -> None:
    """Make the options of a YAML file the defaults of a parser. Under `env` are variables of the environment.

    Raises:
        ValueError, FileNotFoundError: as `parse_options`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path!r}, which --config names.")
    try:
        options = yaml.load(Path(path).read_text(encoding="utf-8"), _Yaml12Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(options, dict) or not isinstance(options.get("env", {}), dict):
        raise ValueError(f"{path} must hold options by their names, one a line, as in `max_steps: 100`.")
    os.environ.update({name: str(value) for name, value in options.pop("env", {}).items()})
    options = {str(name).replace("-", "_"): value for name, value in options.items()}
    # The first option of a name sets it; others, such as --no_NAME, unset it.
    actions: dict[str, Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    unknown = [f"--{name}" for name in options if name not in actions]
    if unknown:
        raise unknown_options(parser, unknown, f", which {path} names")
    parser.set_defaults_with_config(
        **{name: _as_on_command_line(actions[name], value, path) for name, value in options.items()}
    )


def _as_on_command_line(action: Action, value: Any, path: str) -> Any:
    """A value from a YAML file as the text that the parser reads as its option, or as it is where it is no scalar.

    Raises:
        ValueError: there are several values for an option of one.
    """
    if isinstance(value, str | int | float) and action.type is not None:
        text = str(value)
        if _is_truth_value(action):
            text = {"on": "true", "off": "false"}.get(text.lower(), text)
        elif isinstance(value, bool) and action.choices is None:
            text = text.lower()
        return [text] if action.nargs == "+" else text
    if (
        isinstance(value, list | dict)
        and (action.type in (int, float) or _is_truth_value(action))
        and action.nargs != "+"
    ):
        raise ValueError(
            f"{path} gives {action.dest} as {value!r}, and it takes one value. Write {action.dest}: VALUE."
        )
    return value


def _is_truth_value(action: Action) -> bool:
    # By name, since TRL's function is not public.
    return getattr(action.type, "__name__", None) == "string_to_bool"
