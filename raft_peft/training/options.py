"""The options of a training run, from a command line and a YAML file, and what is wrong with them."""

from __future__ import annotations

import json
import os
import re
from argparse import (
    SUPPRESS,
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml  # type: ignore[import-untyped]
from transformers import HfArgumentParser
from trl import TrlParser

from raft_peft.console import check_options, unknown_options


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Help with the description as it is written, and the defaults behind the options."""


def options_parser(
    kinds: Sequence[type], shown: Mapping[str, Collection[str]], defaults: Mapping[str, Any], **texts: Any
) -> TrlParser:
    """A parser of the fields of dataclasses, whose `--help` shows some of them, and `--help-all` all.

    Args:
        kinds: the dataclasses.
        shown: titles of groups, and the names of the fields in each.
        defaults: instead of the fields' own.
        texts: `prog`, `usage` and `description`.
    """
    # An abbreviation would be a mistyped name that is taken silently.
    parser = TrlParser(kinds, formatter_class=RawDescriptionHelpFormatter, add_help=False, allow_abbrev=False, **texts)
    parser.set_defaults(**defaults)
    short = HfArgumentParser(
        [_group(title, kinds, names) for title, names in shown.items()],
        formatter_class=HelpFormatter,
        add_help=False,
        **texts,
    )
    names = {name for group in shown.values() for name in group}
    short.set_defaults(**{name: value for name, value in defaults.items() if name in names})
    for action in short._actions:
        action.option_strings = action.option_strings[:1]  # of two spellings one is enough to read
        if action.default is None:
            action.default = SUPPRESS  # "default: None" tells nothing
    for one in (parser, short):
        one.add_argument("-h", "--help", action=_ShortHelp, short=short, help="Show the options that are often set.")
        one.add_argument("--help-all", action="help", help="Show all options.")
    return parser


class _ShortHelp(Action):
    """`--help`, which shows the options of another parser."""

    def __init__(self, option_strings: Sequence[str], dest: str, short: ArgumentParser, help: str):
        super().__init__(option_strings, dest, nargs=0, default=SUPPRESS, help=help)
        self.short = short

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        self.short.print_help()
        parser.exit()


def _group(title: str, kinds: Sequence[type], names: Collection[str]) -> type:
    """A dataclass of some fields of others, which `HfArgumentParser` shows under a title."""
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    found = {one.name: one for kind in kinds for one in fields(kind)}
    own = [(name, hints[name], _copied(found[name])) for name in names]
    group = make_dataclass("Group", own, kw_only=True)
    group._argument_group_name = title  # type: ignore[attr-defined]
    return group


def _copied(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return field(default_factory=one.default_factory, metadata=one.metadata)
    return field(default=one.default, metadata=one.metadata)


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
    check_options(parser, words)
    for action in parser._actions:
        if action.dest.endswith("_kwargs") and action.type in (str, dict):
            action.type = _json_object
        if _is_truth_value(action) and action.nargs is None:
            action.nargs, action.const = "?", True
    if named.config is not None:
        _set_defaults(parser, named.config)
    *parsed, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        raise unknown_options(parser, unknown)
    return parsed


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
