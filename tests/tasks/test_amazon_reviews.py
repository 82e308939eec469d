import gzip
import json
import logging
from collections import Counter

import pytest

from raft_peft.tasks import _sampling, amazon_reviews
from raft_peft.tasks.amazon_reviews import GRID, PROMPT, load_amazon_reviews

HEADER = [
    *("marketplace", "customer_id", "review_id", "product_id", "product_parent", "product_title", "product_category"),
    *("star_rating", "helpful_votes", "total_votes", "vine", "verified_purchase"),
    *("review_headline", "review_body", "review_date"),
]


@pytest.fixture(autouse=True)
def small_splits(monkeypatch):
    for name, size in (("train", 10), ("validation", 3), ("test", 2)):
        monkeypatch.setitem(amazon_reviews.SPLIT_SIZES, name, size)


def tsv_line(number, **cells):
    cells = {
        "product_title": f"Case {number}",
        "product_category": "Wireless",
        "star_rating": str(number % 5 + 1),
        "review_headline": f"Headline {number}",
        "review_body": f"Body {number}",
        "review_date": "2015-08-31",
    } | cells
    return "\t".join(cells.get(column, "x") for column in HEADER)


def json_line(number, **fields):
    review = {
        "rating": number % 5 + 1.0,
        "title": f"Headline {number}",
        "text": f"Body {number}",
        "parent_asin": f"B{number}",
        "timestamp": 1_441_065_599_000,  # 2015-08-31, a second before midnight in UTC
    }
    return json.dumps(review | fields)


def write(path, lines):
    data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_tsv(folder, lines, name="reviews.tsv"):
    return write(folder / name, ["\t".join(HEADER), *lines])


def load(path, category="wireless", **options):
    return load_amazon_reviews(category, path, **options)


def rows(dataset):
    return [(row["prompt"], row["label"]) for split in dataset.values() for row in split]


def expected(body, category="Wireless", product="", headline="", date="2015-08-31"):
    return PROMPT.format(category=category, product=product, date=date, headline=headline, body=body)


def test_the_splits_and_the_prompt(tmp_path):
    dataset = load(write_tsv(tmp_path, map(tsv_line, range(15))))
    assert {name: len(split) for name, split in dataset.items()} == {"train": 10, "validation": 3, "test": 2}
    assert dataset["train"].column_names == ["prompt", "label"]
    assert dict(rows(dataset)) == {
        expected(f"Body {i}", product=f"Case {i}", headline=f"Headline {i}"): i % 5 + 1 for i in range(15)
    }
    assert set(dataset["train"]["label"]) <= {float(value) for value in GRID}
    assert not PROMPT[-1].isspace()


def test_the_sizes_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.undo()
    sizes = {"train": 10_000, "validation": 1_500, "test": 1_500}
    dataset = load(write_tsv(tmp_path, map(tsv_line, range(13_100))))
    assert {name: len(split) for name, split in dataset.items()} == sizes
    assert len(set(rows(dataset))) == 13_000


def test_the_draw_takes_every_item_alike():
    counts = Counter(item for seed in range(400) for item in _sampling.draw(((str(i), i) for i in range(20)), 5, seed))
    firsts = Counter(_sampling.draw(((str(i), i) for i in range(20)), 5, seed)[0] for seed in range(400))
    # Drawn 100 times of 400, give or take 8.7; the first 20 times, give or take 4.4.
    assert len(counts) == len(firsts) == 20
    assert 60 < min(counts.values()) < max(counts.values()) < 140
    assert max(firsts.values()) < 42


def test_the_draw_follows_the_seed_not_the_order_of_the_file(tmp_path):
    path = write_tsv(tmp_path, map(tsv_line, range(60)))
    first, again, other = (rows(load(path, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert rows(load(write_tsv(tmp_path, map(tsv_line, reversed(range(60)))))) == first


def test_reviews_that_make_the_same_prompt_count_once(tmp_path):
    path = write_tsv(tmp_path, [tsv_line(i % 14) for i in range(140)])
    with pytest.raises(ValueError, match=r"reviews.tsv has 14 distinct reviews, too few .* 10 train, 3 validation"):
        load(path)
    prompts = [prompt for prompt, _ in rows(load(write_tsv(tmp_path, [tsv_line(i % 15) for i in range(150)])))]
    assert len(set(prompts)) == 15


@pytest.mark.parametrize(
    "body",
    [
        'He said "wow',
        '"quoted"',
        '""',
        "Größe 6″, 很好 👍",
        "a\rb",
        "a\u2028b\x0bc\x85d",
        "100% {braces}",
        "<br />&#34;",
        "NA",
    ],
)
def test_every_body_is_kept_as_it_is(tmp_path, body):
    lines = [tsv_line(0, review_body=body), *map(tsv_line, range(1, 15))]
    assert (expected(body, product="Case 0", headline="Headline 0"), 1.0) in rows(load(write_tsv(tmp_path, lines)))
    lines = [json_line(0, text=body), *map(json_line, range(1, 15))]
    path = write(tmp_path / "reviews.jsonl", lines)
    assert (expected(body, headline="Headline 0"), 1.0) in rows(load(path))


def test_what_is_empty_or_written_by_the_shop(tmp_path, caplog):
    lines = [
        tsv_line(4, review_body="", review_headline="Love it"),
        tsv_line(3, review_headline="Four Stars", product_title=" "),
        tsv_line(2, review_headline="Five Stars if it were red"),
        *map(tsv_line, range(5, 17)),
    ]
    path = write_tsv(tmp_path, lines)
    prompts = dict(rows(load(path, automatic_headlines=False)))
    assert prompts[expected("", product="Case 4", headline="Love it")] == 5
    assert prompts[expected("Body 3")] == 4
    assert prompts[expected("Body 2", product="Case 2", headline="Five Stars if it were red")] == 3
    assert not caplog.records
    assert dict(rows(load(path)))[expected("Body 3", headline="Four Stars")] == 4
    assert "1 of the 15 reviews have a headline that the shop wrote" in caplog.text


@pytest.mark.parametrize(
    ("category", "in_file"),
    [
        ("wireless", "Wireless"),
        ("personal_care", "Personal_Care_Appliances"),
        ("personal_care", "Health & Personal Care"),
        ("music", "Music"),
        ("music", "Digital_Music_Purchase"),
    ],
)
def test_the_categories_of_the_file(tmp_path, category, in_file):
    path = write_tsv(tmp_path, [tsv_line(i, product_category=in_file) for i in range(15)])
    text = {"wireless": "Wireless", "personal_care": "Personal Care", "music": "Music"}[category]
    assert all(prompt.startswith(f"product_category: {text}\n") for prompt, _ in rows(load(path, category)))


@pytest.mark.parametrize("name", ["reviews.tsv.gz", "reviews.tsv"])
def test_a_gzipped_file_gives_the_same_rows(tmp_path, name):
    lines = [*map(tsv_line, range(40))]
    path = write_tsv(tmp_path, lines, name="reviews.tsv.gz").rename(tmp_path / name)
    plain = write_tsv(tmp_path, lines, name="plain.tsv")
    assert rows(load(path)) == rows(load(plain))


def test_windows_line_ends_a_byte_order_mark_and_blank_lines(tmp_path):
    text = "\r\n".join(["\ufeff" + "\t".join(HEADER), *map(tsv_line, range(15)), "", ""])
    (tmp_path / "reviews.tsv").write_bytes(text.encode())
    assert rows(load(tmp_path / "reviews.tsv")) == rows(load(write_tsv(tmp_path, map(tsv_line, range(15)), "a.tsv")))


@pytest.mark.parametrize("name", ["reviews.jsonl", "reviews.jsonl.gz"])
def test_amazon_reviews_2023(tmp_path, name):
    lines = [json_line(0, title=None, timestamp=None), *map(json_line, range(1, 15))]
    prompts = dict(rows(load(write(tmp_path / name, lines), "personal_care")))
    assert prompts[expected("Body 0", "Personal Care", date="")] == 1
    assert prompts[expected("Body 8", "Personal Care", headline="Headline 8")] == 4


def test_titles_come_from_the_file_of_products(tmp_path):
    path = write(tmp_path / "reviews.jsonl", [json_line(i, parent_asin=f"B{i}" if i else None) for i in range(15)])
    products = [{"parent_asin": f"B{i}", "title": f"Title {i}"} for i in range(2, 30)] + [{"title": "Of no product"}]
    meta = write(tmp_path / "meta.jsonl.gz", map(json.dumps, products))
    prompts = dict(rows(load(path, meta_path=meta)))
    assert expected("Body 2", product="Title 2", headline="Headline 2") in prompts
    assert expected("Body 1", headline="Headline 1") in prompts
    assert expected("Body 0", headline="Headline 0") in prompts
    untitled = rows(load(path))
    assert [label for _, label in untitled] == list(prompts.values())

    write(meta, ["{", *map(json.dumps, products)])
    with pytest.raises(ValueError, match=r"meta.jsonl.gz, line 1: it is not valid JSON"):
        load(path, meta_path=meta)
    with pytest.raises(ValueError, match="Leave meta_path out"):
        load(write_tsv(tmp_path, []), meta_path=meta)


def test_the_hub_is_read_as_a_stream(tmp_path, monkeypatch, caplog):
    lines = [json_line(0, text="👍"), b"\xff", *map(json_line, range(1, 15)), "never read"]
    path = write(tmp_path / "Digital_Music.jsonl", lines)
    monkeypatch.setattr(amazon_reviews, "HUB_FILE", str(tmp_path / "{name}.jsonl"))
    monkeypatch.setattr(amazon_reviews, "HUB_LINES", 16)
    with pytest.raises(ValueError, match=r"Digital_Music.jsonl, line 2: 'utf-8' codec can't decode"):
        load(None, "music")
    streamed = load(None, "music", on_malformed="skip")
    assert [record.getMessage() for record in caplog.records if record.name == _sampling.__name__] == [
        f"Skipped 1 malformed line(s) of {path}: 2."
    ]
    assert (expected("👍", "Music", headline="Headline 0"), 1.0) in rows(streamed)
    assert rows(streamed) == rows(load(path, "music", on_malformed="skip"))


MALFORMED_TSV = {
    "it has 14 columns, the header 15": "\t".join(["x"] * 14),
    "it has 16 columns, the header 15": tsv_line(0) + "\tx",
    "the rating 'nan' is not 1, 2, 3, 4 or 5": tsv_line(0, star_rating="nan"),
    "the rating '' is not": tsv_line(0, star_rating=""),
    "the rating '0' is not": tsv_line(0, star_rating="0"),
    "the rating '5.5' is not": tsv_line(0, star_rating="5.5"),
    "the rating 'Y' is not": tsv_line(0, star_rating="Y"),
    "its category is 'Musical_Instruments', not 'Wireless'": tsv_line(0, product_category="Musical_Instruments"),
    "'utf-8' codec can't decode byte 0xe9": tsv_line(0, review_body="é").encode("latin-1"),
}
MALFORMED_JSON = {
    r"it is not valid JSON \(Expecting value, column 1\)": "rating",
    r"it is not valid JSON \(Unterminated string starting at, column 2\)": '{"rating',
    "it is not a JSON object": "[5.0]",
    "the rating nan is not": '{"rating": NaN, "text": "x"}',
    "the rating inf is not": '{"rating": Infinity, "text": "x"}',
    "the rating None is not": '{"text": "x"}',
    "the rating True is not": '{"rating": true, "text": "x"}',
    r"the rating \[5\] is not": '{"rating": [5], "text": "x"}',
    "the rating 1000": '{"rating": 1' + "0" * 400 + "}",
    r"its field 'text' is 5, not a text": '{"rating": 5, "text": 5}',
    "'utf-8' codec can't encode character": r'{"rating": 5, "text": "\ud83d"}',
    "its timestamp 'today' is not a time": '{"rating": 5, "timestamp": "today"}',
    "its timestamp 1e[+]20 is not a time": '{"rating": 5, "timestamp": 1e20}',
    "'utf-8' codec can't decode byte 0xff": b'{"rating": 5, "text": "\xff"}',
}


@pytest.mark.parametrize(
    ("line", "reason", "is_json"),
    [(line, reason, False) for reason, line in MALFORMED_TSV.items()]
    + [(line, reason, True) for reason, line in MALFORMED_JSON.items()],
)
def test_a_malformed_line_is_named_or_skipped(tmp_path, caplog, line, reason, is_json):
    good = [*map(json_line if is_json else tsv_line, range(15))]
    lines = [*good[:3], line, *good[3:]]
    path = write(tmp_path / "reviews.jsonl", lines) if is_json else write_tsv(tmp_path, lines)
    number = 4 if is_json else 5
    with pytest.raises(ValueError, match=rf"reviews.\w+, line {number}: {reason}.*pass on_malformed='skip'"):
        load(path)
    with caplog.at_level(logging.WARNING, logger=_sampling.__name__):
        assert len(rows(load(path, on_malformed="skip"))) == 15
    assert [record.getMessage() for record in caplog.records] == [f"Skipped 1 malformed line(s) of {path}: {number}."]


def test_many_malformed_lines_make_one_warning(tmp_path, caplog):
    path = write(tmp_path / "reviews.jsonl", [*["{"] * 7, *map(json_line, range(15)), "{"])
    load(path, on_malformed="skip")
    (record,) = caplog.records
    assert record.getMessage() == f"Skipped 8 malformed line(s) of {path}: 1, 2, 3, 4, 5 and 3 more."


def test_what_cannot_be_loaded(tmp_path):
    good = write_tsv(tmp_path, map(tsv_line, range(15)))
    with pytest.raises(ValueError, match=r"no category 'books'. Choose one of: wireless, personal_care, music"):
        load(good, "books")
    with pytest.raises(ValueError, match=r"on_malformed is 'ignore'. It must be 'raise'"):
        load(good, on_malformed="ignore")
    with pytest.raises(FileNotFoundError, match=r"none.tsv is missing"):
        load(tmp_path / "none.tsv")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"reviews.csv is neither .tsv"):
        load(write(tmp_path / "reviews.csv", []))
    for header in ("", "star_rating\treview_body"):
        with pytest.raises(ValueError, match=r"does not name the columns product_category.*with its header"):
            load(write(tmp_path / "headless.tsv", [header]), on_malformed="skip")
    with pytest.raises(ValueError, match="has 0 distinct reviews, too few"):
        load(write(tmp_path / "empty.jsonl", []))
    broken = write_tsv(tmp_path, map(tsv_line, range(15)), "broken.tsv.gz")
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"broken.tsv.gz is damaged or incomplete .* Download it again"):
        load(broken, on_malformed="skip")
