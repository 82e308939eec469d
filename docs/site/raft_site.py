"""A Python-Markdown extension for the site: links to files of the repository, and equations as MathML."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor
from markdown.treeprocessors import Treeprocessor

ROOT = Path(__file__).resolve().parents[2]
EQUATION = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', flags=re.DOTALL)


class RepositoryLinks(Treeprocessor):
    """Links as they stand in the repository, turned into links of the site.

    A file that is no page becomes a link to `repo_url`, and plain text where there is none. The pages with such links
    are those of docs/ itself, and files of the root that a page includes.
    """

    def __init__(self, markdown: Markdown, repo_url: str):
        super().__init__(markdown)
        self.repo_url = repo_url

    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            path, _, anchor = link.get("href", "").partition("#")
            if not path or ":" in path or ((ROOT / "docs" / path).is_file() and not path.startswith("../")):
                continue
            in_repository = posixpath.normpath(posixpath.join("docs", path)) if path.startswith("../") else path
            if not (ROOT / in_repository).exists():
                continue  # left for the site's builder to warn of
            page = self._page(in_repository)
            if page is not None:
                link.set("href", f"{page}#{anchor}" if anchor else page)
            elif self.repo_url:
                link.set("href", f"{self.repo_url}/blob/main/{in_repository}")
            else:
                link.tag = "span"
                del link.attrib["href"]

    @staticmethod
    def _page(in_repository: str) -> str | None:
        page = in_repository.removeprefix("docs/") if in_repository.startswith("docs/") else in_repository.lower()
        return page if page.endswith(".md") and (ROOT / "docs" / page).is_file() else None


class MathML(Postprocessor):
    """What arithmatex marks as LaTeX, as MathML, which browsers show without a script."""

    def run(self, text: str) -> str:
        return EQUATION.sub(self._convert, text)

    @staticmethod
    def _convert(match: re.Match[str]) -> str:
        latex = html.unescape(match.group(2)).strip()[2:-2]  # without \( and \), or \[ and \]
        return convert(latex, display="block" if match.group(1) == "div" else "inline")


class SiteExtension(Extension):
    def __init__(self, **options: str):
        self.config = {"repo_url": ["", "where files that are no pages are linked to"]}
        super().__init__(**options)

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - read by Python-Markdown
        # Behind the inline patterns (20), and before the site's builder resolves links (0)
        md.treeprocessors.register(RepositoryLinks(md, self.getConfig("repo_url")), "repository_links", 5)
        md.postprocessors.register(MathML(md), "mathml", 5)


def makeExtension(**options: str) -> SiteExtension:  # noqa: N802 - read by Python-Markdown
    return SiteExtension(**options)
