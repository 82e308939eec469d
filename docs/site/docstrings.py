"""A griffe extension: references such as [`RegressionPredictor`] as links, and examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
# Several parameters of one description, over more than one line
NAMES = re.compile(r"^([ \t]*(?:\w+, )*\w+,)\n[ \t]+((?:\w+, )*\w+: )", flags=re.MULTILINE)
EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)+", flags=re.MULTILINE)


class HuggingFaceReferences(griffe.Extension):
    """Turns them into cross-references by full path, which are plain code where the object is on no page."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self.paths: dict[str, str] = {}
        documented = list(_objects(pkg))
        for one in documented:
            if one.kind in (griffe.Kind.CLASS, griffe.Kind.FUNCTION):
                self.paths.setdefault(one.name, one.path)
        for one in documented:
            if one.docstring is not None:
                text = NAMES.sub(r"\1 \2", REFERENCE.sub(self._link, one.docstring.value))
                one.docstring.value = EXAMPLE.sub(lambda match: _fenced(match.group()), text)

    def _link(self, match: re.Match[str]) -> str:
        short, name = match.groups()
        first, _, rest = name.partition(".")
        path = ".".join(filter(None, (self.paths.get(first), rest)))
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>' if path else f"`{shown}`"


def _objects(parent: Any) -> Any:
    for one in parent.members.values():
        if not one.is_alias:
            yield one
            yield from _objects(one)


def _fenced(example: str) -> str:
    return f"```pycon\n{example.rstrip()}\n```\n"
