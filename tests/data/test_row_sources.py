import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from raft_peft.data.row_sources import read_rows

ROWS = [{"text": "a\tb", "stars": "3.5"}, {"text": "NA", "stars": "4"}]


def test_tables_with_tabs(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tstars\n"a\tb"\t3.5\nNA\t4\n')
    assert list(read_rows(path)) == ROWS
    path.write_text("text,stars\na,3.5\n")
    with pytest.raises(ValueError, match=r"separated by commas. Save a .csv with commas, and a .tsv with tabs"):
        list(read_rows(path))


def test_parquet_and_saved_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset.select([0]), "test": dataset}).save_to_disk(tmp_path / "splits")
    for source in ("rows.parquet", "one", "splits:test"):
        assert list(read_rows(str(tmp_path / source))) == ROWS
    with pytest.raises(ValueError, match=r"has the splits train, test. Name one of them: .*splits:test"):
        read_rows(tmp_path / "splits")
    with pytest.raises(ValueError, match="has the splits train, test"):
        read_rows(f"{tmp_path / 'splits'}:dev")
    with pytest.raises(ValueError, match="one dataset, and no split 'test'"):
        read_rows(f"{tmp_path / 'one'}:test")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no dataset"):
        read_rows(tmp_path / "folder")
    (tmp_path / "bad.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"bad.parquet is not Parquet"):
        read_rows(tmp_path / "bad.parquet")


def test_the_names_of_classes_count_not_their_indices(tmp_path):
    features = Features({"text": Value("string"), "stars": ClassLabel(names=["1", "2", "3"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "stars": [0, 2, None]}, features=features).save_to_disk(
        tmp_path / "one"
    )
    assert [row["stars"] for row in read_rows(tmp_path / "one")] == ["1", "3", None]


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none.csv'"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"ends in '.txt'. Rows are read from a file in .jsonl, .csv, .tsv"):
        read_rows(tmp_path / "rows.txt")
    with pytest.raises(FileNotFoundError, match="no file 'nobody/nothing:test', and the Hub's dataset"):
        read_rows("nobody/nothing:test")
