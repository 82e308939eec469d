"""Rows in files: what is read, and what is left of a file that was cut off at any byte."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_peft.data.row_files import RowWriter
from raft_peft.data.row_sources import read_rows

ROWS = [
    {"prompt": 'Say "hi", twice', "label": 1.5},
    {"prompt": "two\nlines", "label": 2.0},
    {"prompt": "ünïcödé 🍵", "label": 0.0},
    {"prompt": "carriage\rreturn, and both\r\n", "label": -1.0},
]


def written(path, rows):
    with RowWriter(path) as writer:
        writer.write(rows)
    return path


def test_json_lines(tmp_path):
    path = written(tmp_path / "rows.jsonl", ROWS)
    assert list(read_rows(path)) == ROWS
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


def test_csv(tmp_path):
    path = written(tmp_path / "rows.csv", ROWS)
    assert list(read_rows(path)) == [{"prompt": row["prompt"], "label": str(row["label"])} for row in ROWS]
    assert path.read_bytes().startswith(b"prompt,label\r\n")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, suffix):
    path = written(tmp_path / f"rows{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row["prompt"] for row in read_rows(path)] == [row["prompt"] for row in ROWS]


def test_a_long_prompt_in_csv(tmp_path):
    path = written(tmp_path / "rows.csv", [{"prompt": "long " * 100_000}])
    assert next(read_rows(path))["prompt"] == "long " * 100_000


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_cut_off_at_every_byte_and_continued(tmp_path, suffix):
    whole = written(tmp_path / f"whole{suffix}", ROWS).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with RowWriter(path) as writer:
            assert writer.begins_with(iter(ROWS)) == writer.rows
            writer.write(ROWS[writer.rows :])
        assert path.read_bytes() == whole, size


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_rows_that_the_file_does_not_begin_with(tmp_path, suffix):
    with RowWriter(written(tmp_path / f"rows{suffix}", ROWS)) as writer:
        assert writer.begins_with(iter([*ROWS, {"prompt": "more"}])) == len(ROWS)
        assert writer.begins_with({"label": row["label"]} for row in ROWS) == len(ROWS)
        assert writer.begins_with(iter([ROWS[0], ROWS[2], ROWS[1], ROWS[3]])) == 1
        assert writer.begins_with(iter(ROWS[:2])) == 2
        assert writer.begins_with({**row, "another": None} for row in ROWS) == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_one_writer_at_a_time(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    with RowWriter(path) as first:
        with pytest.raises(OSError, match=rf"is being written by process {os.getpid()} on .*, since 2.*another file"):
            RowWriter(path)
        first.write(ROWS)
    with RowWriter(path) as second:
        assert second.rows == len(ROWS)
    with RowWriter(tmp_path / ".." / tmp_path.name / path.name), pytest.raises(OSError, match="is being written"):
        RowWriter(path)


def test_a_writer_that_was_killed_blocks_nobody(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import os, signal, sys; from raft_peft.data.row_files import RowWriter; "
        "RowWriter(sys.argv[1]).write([{'id': 0}]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    with RowWriter(path) as writer:
        assert writer.rows == 1


def test_what_made_the_rows_is_compared(tmp_path, caplog):
    path, note = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.made_by.json"
    made_by = {"decision": "mean", "grid": [[0, "0"], [1, "1"]], "weights": "abc" * 30}
    with RowWriter(path, made_by) as writer:
        writer.write(ROWS)
    assert json.loads(note.read_text())["made_by"] == made_by
    with RowWriter(path, made_by) as writer:
        assert writer.rows == len(ROWS)
    with pytest.raises(ValueError, match=r'written with another decision \("mean", not "mode"\), weights\. Continue'):
        RowWriter(path, {**made_by, "decision": "mode", "weights": "def" * 30})
    RowWriter(path, {**made_by, "of a later version": 1}).__exit__(None, None, None)
    assert not caplog.records
    note.write_text("[]")
    with pytest.raises(ValueError, match=r"made_by.json should say .* cannot be read"):
        RowWriter(path, made_by)
    note.unlink()
    RowWriter(path, made_by).__exit__(None, None, None)
    assert "It is not known what made the rows in" in caplog.text
    assert sorted(tmp_path.iterdir()) == [path, note]
    path.write_text("")
    RowWriter(path, {"decision": "mode"}).__exit__(None, None, None)
    assert json.loads(note.read_text())["made_by"] == {"decision": "mode"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2, is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1, is list"),
        ("a.jsonl", b'{"label": NaN}\n', "NaN is not a JSON number"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', "line 1, is not JSON"),
        ("a.jsonl", b'{"prompt": "a", "label": 1e999}\n', "1e999 is too large"),
        ("a.jsonl", b'{"prompt": "\\uD83C"}\n', "line 1, is not JSON"),
        ("a.csv", b"prompt,label\na,1,2\n", "line 2, does not have as many fields"),
        ("a.csv", b"prompt,label\na\n", "line 2, does not have as many fields"),
        ("a.csv", b'prompt\n"a\n', "is not CSV"),
        ("a.csv", b"prompt\n\xff\n", "is not CSV in UTF-8"),
        ("a.csv", b"prompt,label,label\na,1,5\n", "two columns of the name 'label'"),
        ("a.csv", b"prompt;label\na;1\n", "separated by semicolons. Save a .csv with commas"),
        ("a.csv", b"prompt\tlabel\na\t1\n", "separated by tabs"),
        ("a.csv", b"prompt , label\na,1\n", "spaces around the names"),
        ("a.jsonl", b'{"prompt": "a", "label": 1, "label": 5}\n', "line 1, is not JSON: the key 'label' occurs"),
        (
            "a.jsonl",
            b'{"prompt": [{"role": "user", "role": "system"}]}\n',
            "the key 'role' occurs twice in one object",
        ),
        ("a.txt", b"prompt\n", "ends in '.txt'"),
    ],
)
def test_what_is_no_row_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_files_and_folders_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_rows(tmp_path / "no.jsonl")
    with pytest.raises(FileNotFoundError, match="no folder"):
        RowWriter(tmp_path / "no" / "rows.jsonl")


def test_a_file_of_something_else_is_not_continued(tmp_path):
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    with pytest.raises(ValueError, match="line 1, is not a row of predictions"):
        RowWriter(tmp_path / "notes.jsonl")
    assert (tmp_path / "notes.jsonl").read_text() == "my notes\n"
    for name, content in (
        ("a.jsonl", "my notes, without a new line"),
        ("a.csv", "my notes"),
        ("b.csv", 'my "notes", and more\n"rows, cut off'),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="Write to a"), RowWriter(tmp_path / name) as writer:
            writer.write(ROWS)
        assert (tmp_path / name).read_text() == content
    with RowWriter(written(tmp_path / "rows.csv", ROWS)) as writer, pytest.raises(ValueError, match="has the columns"):
        writer.write([{"another": 1}])


def test_a_full_disk_names_the_file_and_keeps_the_rows(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = written(tmp_path / "rows.jsonl", ROWS)
    with (
        pytest.raises(OSError, match=rf"'{path}' could not be written: .* It holds {len(ROWS)} rows"),
        RowWriter(path) as writer,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            writer.write(ROWS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with RowWriter(path) as writer:
        assert writer.rows == len(ROWS)
        writer.write(ROWS)
    assert list(read_rows(path)) == ROWS * 2


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_any_bytes_are_rows_or_a_value_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        rows = list(read_rows(path))
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(row, dict) for row in rows)
