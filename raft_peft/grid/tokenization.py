"""The token ids of every grid value behind a text, each from the tokenizer's reading of the whole sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.number_grid import NumberGrid


class NumberSentences:
    """Reads a grid off sentences, text + number.

    The tokens that all of them share with the text are its own, the rest is the number.

    Args:
        grid: the numbers.
        tokenizer: a Hugging Face tokenizer.
        number_end: what must follow a number.
    """

    def __init__(self, grid: NumberGrid, tokenizer: Any, number_end: NumberEnd):
        self.grid = grid
        self.tokenizer = tokenizer
        self.number_end = number_end
        self.added_tokens = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else {}
        self._known: dict[str, bool] = {}  # characters, and whether the tokenizer has a token for them alone

    def split(self, text: str, opening: list[int]) -> tuple[int, tuple[str, ...], tuple[tuple[int, ...], ...]]:
        """Part each sentence into text and number.

        Args:
            text: what stands before the number.
            opening: its ids.

        Returns:
            How many of the ids are the text's own; each number's text, with its end where that is a text; and the ids
            of each number, with its end.

        Raises:
            ValueError: a number merges into the text, has no tokens or those of another, or overlaps with another.
        """
        texts = list(self.grid.texts)
        whole = self.encode(text + number for number in texts)
        length = self._prompt_length(text, texts, opening, whole)
        self._check_number_tokens(text, texts, [tuple(ids[length:]) for ids in whole])
        if self.number_end == NumberEnd():
            return length, tuple(texts), tuple(tuple(ids[length:]) for ids in whole)
        ended = list(range(len(texts))) if self.number_end.every_number else _beginnings(whole)
        if self.number_end.text:
            for value in ended:
                texts[value] += self.number_end.text
            whole = self.encode(text + number for number in texts)
            length = self._prompt_length(text, texts, opening, whole)
        token_ids = [tuple(ids[length:]) for ids in whole]
        self._check_number_tokens(text, texts, token_ids)
        if self.number_end.token_id is not None:
            for value in ended:
                token_ids[value] += (self.number_end.token_id,)
        self._check_ends(token_ids)
        return length, tuple(texts), tuple(token_ids)

    def _prompt_length(self, text: str, texts: Sequence[str], opening: list[int], whole: list[list[int]]) -> int:
        if all(ids[: len(opening)] == opening for ids in whole):
            if opening and opening[-1] == self.tokenizer.unk_token_id:
                self._check_unknown_end(text, texts, len(opening))
            return len(opening)
        shared = [_common_prefix_length(opening, ids) for ids in whole]
        length = min(shared)
        # The tokens lost from the prompt may only be white space, which then is part of the number's own token.
        if self.tokenizer.decode(opening[length:], skip_special_tokens=False).strip():
            value = shared.index(length)
            raise ValueError(
                f"The number {self.grid.texts[value]!r} merges into the end of the prompt {ending(text)!r}: the "
                f"tokenizer gives {self.token_texts(opening[length:])} without the number and "
                f"{self.token_texts(whole[value][length:])} with it. End the prompt with a space or a new line, "
                "or set another separator."
            )
        return length

    def _check_unknown_end(self, text: str, texts: Sequence[str], length: int) -> None:
        """An unknown token at the end of the prompt may take in the beginning of a number without a trace."""
        sentences = [text + number for number in texts]
        offsets = self.tokenizer(sentences, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for number, sentence, spans in zip(self.grid.texts, sentences, offsets, strict=True):
            if sentence[len(text) : spans[length - 1][1]].strip():
                raise ValueError(
                    f"The number {number!r} merges into the end of the prompt {ending(text)!r}: both are one token "
                    "that the tokenizer does not know. End the prompt with a space or a new line, or set another "
                    "separator."
                )

    def _check_number_tokens(self, text: str, texts: Sequence[str], token_ids: Sequence[tuple[int, ...]]) -> None:
        seen: dict[tuple[int, ...], str] = {}
        unknown, unknown_id = self.tokenizer.unk_token, self.tokenizer.unk_token_id
        for number, ended, ids in zip(self.grid.texts, texts, token_ids, strict=True):
            if not ids or (unknown_id in ids and unknown not in ended) or self._leaves_out(ended):
                raise ValueError(
                    f"The tokenizer has no token for the grid text {ended!r} after {ending(text)!r}. Choose values "
                    "that it can write, or give them other texts: `grid={1: 'A', 2: 'B'}`."
                )
            own = self.added_tokens.get(number)
            if own is not None and ids[0] != own:
                raise ValueError(
                    f"The grid text {number!r} has a token of its own, but after {ending(text)!r} it is written as "
                    f"{self.token_texts(ids)}. End the prompt with a space or a new line, or set another separator."
                )
            if ids in seen:
                raise ValueError(
                    f"The grid texts {seen[ids]!r} and {number!r} are the same tokens {self.token_texts(ids)}, so "
                    "the model cannot tell them apart. Give them texts that differ under this tokenizer."
                )
            seen[ids] = number

    def _leaves_out(self, text: str) -> bool:
        """Whether the tokenizer drops characters of a text, since it does not know them."""
        if self._knows_all(text):
            return False
        for token in self.added_tokens:
            text = text.replace(token, " ")
        return not self._knows_all(text)

    def _knows_all(self, text: str) -> bool:
        characters = {character for character in text if not character.isspace()}
        if unseen := sorted(characters - self._known.keys()):
            self._known.update(zip(unseen, map(bool, self.encode(unseen)), strict=True))
        return all(self._known[character] for character in characters)

    def _check_ends(self, token_ids: Sequence[tuple[int, ...]]) -> None:
        """With an end of its own, no number may begin another any more."""
        for value in _beginnings(token_ids):
            other = next(ids for ids in token_ids if ids[: len(token_ids[value])] == token_ids[value] != ids)
            raise ValueError(
                f"The grid text {self.grid.texts[value]!r} with its end {self.token_texts(token_ids[value])} is the "
                f"beginning of another, {self.token_texts(other)}, so the two overlap. Set `number_end` to 'grid', or "
                "to a text that stands in no number, such as a new line."
            )

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, without special tokens in front."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The tokens, as messages show them."""
        return self.tokenizer.convert_ids_to_tokens(list(ids))


def _beginnings(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The indices of the sequences with which another one begins."""
    # In lexicographic order a sequence stands right before those that begin with it.
    order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
    pairs = pairwise(order)
    return sorted(
        index
        for index, following in pairs
        if list(sequences[following][: len(sequences[index])]) == list(sequences[index])
    )


def _common_prefix_length(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    length = 0
    for one, other in zip(ids, other_ids, strict=False):
        if one != other:
            break
        length += 1
    return length


def ending(text: str, length: int = 60) -> str:
    """The end of a text, as messages show it."""
    return text if len(text) <= length else "..." + text[-length:]
