"""Amazon reviews: how many stars, from 1 to 5, a review gives (the paper's wireless, personal care and music).

The paper takes its rows from the *Amazon US reviews*, which are no longer offered for download; who has a file of them
can give it. By default the rows come from *Amazon Reviews 2023* (McAuley Lab), in the nearest category. The two are
different reviews, so their errors are not to be compared.

The prompt is that of the paper's Table 6. The table does not show how its fields are separated; here each begins a
line, since the question speaks of "the above review". A field that is not known stays empty.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

from raft_peft.tasks._sampling import (
    as_dataset,
    check_on_malformed,
    check_sizes,
    cut_into_splits,
    draw,
    parse_lines,
    read_lines,
    read_stars,
    too_few_rows,
)

logger = logging.getLogger(__name__)

GRID = range(1, 6)

# The paper's sizes (its Table 7).
SPLIT_SIZES = {"train": 10_000, "validation": 1_500, "test": 1_500}

# The question comes last, where no cut can reach it. In a user's message, as for the paper's instruction-tuned models,
# the number begins the reply. In plain text it stands behind the last full stop and a space.
PROMPT = (
    "product_category: {category}\nproduct_title: {product}\nreview_date: {date}\nreview_headline: {headline}\n"
    "review_body: {body}\nQuestion: In a star rating of 1, 2, 3, 4, 5, the higher the better, what would be the star "
    "rating of the above review? Please only give me the final rating and I do not need any explanations."
)

# The repository's own configurations need a loading script, which `datasets` no longer runs; these are its files.
HUB_FILE = "hf://datasets/McAuley-Lab/Amazon-Reviews-2023/raw/review_categories/{name}.jsonl"
HUB_LINES = 1_000_000


@dataclass(frozen=True)
class Category:
    """A category of products.

    Attributes:
        text: its name in the prompt.
        in_tsv: a pattern of its names in the column `product_category` of the Amazon US reviews.
        hub_name: the name of the nearest category in Amazon Reviews 2023.
    """

    text: str
    in_tsv: str
    hub_name: str


CATEGORIES = {
    "wireless": Category("Wireless", r"wireless", "Cell_Phones_and_Accessories"),
    "personal_care": Category("Personal Care", r"personal.?care", "Health_and_Personal_Care"),
    "music": Category("Music", r"music(?!al)", "Digital_Music"),
}

_TSV_COLUMNS = ("product_category", "product_title", "review_date", "review_headline", "review_body", "star_rating")

# Written by the shop where the customer wrote no headline. It is the label, in words.
_AUTOMATIC_HEADLINE = re.compile(r"(one|two|three|four|five) stars?", re.IGNORECASE)


def load_amazon_reviews(
    category: str,
    path: str | Path | None = None,
    *,
    meta_path: str | Path | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    automatic_headlines: bool = True,
    on_malformed: str = "raise",
) -> DatasetDict:
    """Draw reviews of one category at random, split as in the paper.

    Reviews that make the same prompt count once, so no prompt is in two splits. Files are read in one pass, whatever
    their size, and only the rows drawn are held in memory.

    Where a customer wrote no headline, the shop wrote one: "Five Stars". It is the label, in words. The paper does not
    say that it leaves these out, so they stay by default, and how many there are is logged.

    Args:
        category: "wireless", "personal_care" or "music".
        path: a file of Amazon US reviews (`.tsv`) or of Amazon Reviews 2023 (`.jsonl`), either also as `.gz`. By
            default the first million reviews of the category in Amazon Reviews 2023, streamed from the Hub.
        meta_path: the products of Amazon Reviews 2023 (`meta_*.jsonl`, also as `.gz`), for the titles of the
            products, which its reviews do not hold. Without it, the prompts have no titles.
        seed: of the draw.
        sizes: the rows of each split, for a file that has fewer than the paper's 13,000.
        automatic_headlines: whether a headline that the shop wrote stays in the prompt. False leaves it empty.
        on_malformed: what to do with a line that has the wrong number of columns, a rating other than 1 to 5 stars,
            bytes that are not UTF-8, invalid JSON, or another category: "raise", or "skip" and log a warning.

    Returns:
        `train` (by default 10,000 rows), `validation` (1,500) and `test` (1,500), of `prompt` and `label`, in stars.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown category, policy or format; a malformed line, under "raise"; too few reviews.
    """
    check_on_malformed(on_malformed)
    check_sizes(sizes)
    if category not in CATEGORIES:
        raise ValueError(f"There is no category {category!r}. Choose one of: {', '.join(CATEGORIES)}.")
    source, reviews = _open_reviews(CATEGORIES[category], path, on_malformed)
    if meta_path is not None and source.removesuffix(".gz").endswith(".tsv"):
        raise ValueError(f"meta_path is for .jsonl files; {source} has its own product titles. Leave meta_path out.")

    if not automatic_headlines:
        reviews = (replace(review, headline="") if review.has_automatic_headline else review for review in reviews)
    rows = sum(sizes.values())
    drawn = draw(((review.prompt(), review) for review in reviews), rows, seed)
    if len(drawn) < rows:
        raise too_few_rows(source, f"{len(drawn):,} distinct reviews", sizes)
    automatic = sum(review.has_automatic_headline for review in drawn)
    if automatic:
        logger.warning(
            f"{automatic:,} of the {rows:,} reviews have a headline that the shop wrote, such as 'Five Stars', which "
            "gives the label away. Pass automatic_headlines=False to leave these headlines empty."
        )
    if meta_path is not None:
        titles = _read_titles(_existing(meta_path), {review.product_id for review in drawn} - {""}, on_malformed)
        drawn = [replace(review, product=titles.get(review.product_id, "")) for review in drawn]
    return as_dataset(cut_into_splits([(review.prompt(), review.stars) for review in drawn], sizes))


@dataclass(frozen=True)
class Review:
    """A review as the prompt shows it; the texts may be empty."""

    category: str
    product: str
    date: str
    headline: str
    body: str
    stars: float
    product_id: str = ""

    @property
    def has_automatic_headline(self) -> bool:
        return _AUTOMATIC_HEADLINE.fullmatch(self.headline) is not None

    def prompt(self) -> str:
        return PROMPT.format(
            category=self.category, product=self.product, date=self.date, headline=self.headline, body=self.body
        )


def _open_reviews(category: Category, path: str | Path | None, on_malformed: str) -> tuple[str, Iterator[Review]]:
    """The name of the source, and its reviews."""
    first_line = 1
    lines: Iterator[bytes]
    parse: Callable[[bytes], Review]
    if path is None:
        source = HUB_FILE.format(name=category.hub_name)
        # Latin-1 gives every byte a character and takes it back, so the parser gets the bytes as they are.
        stream = load_dataset("text", data_files=source, split="train", streaming=True, encoding="latin-1")
        lines = (row["text"].encode("latin-1") for row in islice(stream, HUB_LINES))
        parse = _JsonParser(category)
    else:
        path = _existing(path)
        source, lines = str(path), read_lines(path)
        suffix = Path(source.removesuffix(".gz")).suffix
        if suffix == ".jsonl":
            parse = _JsonParser(category)
        elif suffix == ".tsv":
            parse, first_line = _TsvParser(category, path, next(lines, b"")), 2
        else:
            raise ValueError(
                f"{path} is neither .tsv (Amazon US reviews) nor .jsonl (Amazon Reviews 2023), or these with .gz. "
                "Rename it if it holds one of them."
            )
    return source, parse_lines(lines, parse, source=source, on_malformed=on_malformed, first_line=first_line)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or is not a file. Give one file of Amazon reviews.")
    return path


class _TsvParser:
    """Lines of the Amazon US reviews, in which a quotation mark is a character like any other."""

    def __init__(self, category: Category, path: Path, header: bytes):
        self.category = category
        self.columns = header.decode("utf-8-sig", errors="replace").split("\t")
        missing = [column for column in _TSV_COLUMNS if column not in self.columns]
        if missing:
            raise ValueError(
                f"The first line of {path} does not name the columns {', '.join(missing)}. Give the file as it was "
                "published, tab-separated, with its header."
            )

    def __call__(self, line: bytes) -> Review:
        cells = line.decode().split("\t")
        if len(cells) != len(self.columns):
            raise ValueError(f"it has {len(cells)} columns, the header {len(self.columns)}")
        cell = dict(zip(self.columns, map(str.strip, cells), strict=True))
        if not re.search(self.category.in_tsv, cell["product_category"].lower()):
            raise ValueError(f"its category is {cell['product_category']!r}, not {self.category.text!r}")
        return Review(
            self.category.text,
            product=cell["product_title"],
            date=cell["review_date"],
            headline=cell["review_headline"],
            body=cell["review_body"],
            stars=read_stars(cell["star_rating"]),
        )


class _JsonParser:
    """Lines of Amazon Reviews 2023."""

    def __init__(self, category: Category):
        self.category = category

    def __call__(self, line: bytes) -> Review:
        record = _read_object(line)
        return Review(
            self.category.text,
            product="",
            date=_read_date(record.get("timestamp")),
            headline=_read_text(record, "title"),
            body=_read_text(record, "text"),
            stars=read_stars(record.get("rating")),
            product_id=_read_text(record, "parent_asin"),
        )


def _read_titles(path: Path, product_ids: set[str], on_malformed: str) -> dict[str, str]:
    """The titles of these products, and of no other: a category has millions."""

    def parse(line: bytes) -> tuple[str, str]:
        record = _read_object(line)
        return _read_text(record, "parent_asin"), _read_text(record, "title")

    titles = parse_lines(read_lines(path), parse, source=path, on_malformed=on_malformed)
    return {product_id: title for product_id, title in titles if product_id in product_ids}


def _read_object(line: bytes) -> dict[str, Any]:
    text = line.decode()
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def _read_text(record: dict[str, Any], field: str) -> str:
    text = record.get(field)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"its field {field!r} is {text!r}, not a text")
    text.encode()  # JSON can hold half a surrogate pair, which is no text; the error says so
    return text.strip()


def _read_date(milliseconds: Any) -> str:
    """The day in UTC, as the Amazon US reviews write it: 2015-08-31."""
    if milliseconds is None:
        return ""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        raise ValueError(f"its timestamp {milliseconds!r} is not a time in milliseconds") from None
