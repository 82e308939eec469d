"""STS-B: how similar two sentences are, from 0 to 5 (the paper's Tables 6 and 7)."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset

# The paper's, though the scale begins at 0: what is off the grid counts as 0, so 0 can be reached.
GRID = range(1, 6)

# Every whole number of the scale, for those who want one. It is divided by its sum by default, since it holds 0.
WHOLE_SCALE = range(6)

# The paper's prompt ends in "equal to", without a space: the space is part of the number's token in many vocabularies.
PROMPT = (
    "What is the sentence similarity between the following two sentences measured on a scale of 0 to 5: "
    "{sentence1}, {sentence2}. The similarity measured on a scale of 0 to 5 with 0 being unrelated and 5 being "
    "related is equal to"
)

HUB_DATASET = ("nyu-mll/glue", "stsb")
_COLUMNS = ["sentence1", "sentence2", "label"]


def load_stsb(folder: str | Path | None = None, *, seed: int = 0) -> DatasetDict:
    """STS-B as the paper splits it: 15 % of train held out for validation, the 1,500 validation pairs as test.

    The paper gives 4,887 and 863 pairs (its Table 7), together 5,750. The dataset has 5,749, so the training split
    here has one pair less. Which pairs the paper holds out is not known; here they are drawn at random.

    Args:
        folder: a folder with `train.csv` and `dev.csv`, each line sentence 1, sentence 2 and score, without a header.
            By default the dataset comes from the Hub.
        seed: of the split.

    Returns:
        `train` (4,886 rows of the full dataset), `validation` (863) and `test` (1,500), of `prompt` and `label`.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
    """
    if folder is None:
        source = load_dataset(*HUB_DATASET)
        train, test = source["train"], source["validation"]
    else:
        train, test = (_read_csv(Path(folder) / name) for name in ("train.csv", "dev.csv"))
    held_out = train.train_test_split(test_size=0.15, seed=seed)
    splits = {"train": held_out["train"], "validation": held_out["test"], "test": test}
    return DatasetDict({name: split.map(_to_row, remove_columns=split.column_names) for name, split in splits.items()})


def _read_csv(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. The folder needs train.csv and dev.csv of STS-B.")
    # Sentences such as "NA" are text, not missing values.
    return load_dataset("csv", data_files=str(path), column_names=_COLUMNS, keep_default_na=False, split="train")


def _to_row(pair: dict) -> dict:
    return {"prompt": PROMPT.format(sentence1=pair["sentence1"], sentence2=pair["sentence2"]), "label": pair["label"]}
