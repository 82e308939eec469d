"""Encoding a dataset from disk, and a log of what was encoded and not taken from the cache, in whatever process."""

from pathlib import Path

from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer

from raft_peft import NumberGrid
from raft_peft.data.dataset import encode_dataset
from raft_peft.data.prompts import PromptEncoder
from raft_peft.methods import METHODS


class EncodingLog:
    """A file with a line for each batch that a `PromptEncoder` encodes: how many rows it has."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def start(self, set_attribute=setattr) -> None:
        encode = PromptEncoder.encode

        def logged(encoder, rows, *arguments):
            with self.path.open("a") as file:
                file.write(f"{len(rows)}\n")
            return encode(encoder, rows, *arguments)

        set_attribute(PromptEncoder, "encode", logged)

    @property
    def rows(self) -> int:
        return sum(map(int, self.path.read_text().split()))


def encode_from_disk(folder: Path, num_proc: int | None = None) -> Dataset:
    """Encode the dataset in `folder/rows` with the tokenizer in `folder/tokenizer`, both loaded anew."""
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(folder / "tokenizer"), NumberGrid(range(5)), max_length=16)
    return encode_dataset(
        load_from_disk(folder / "rows"),
        "train",
        encoder,
        label_column="label",
        method=METHODS["raft"],
        num_proc=num_proc,
    )
