"""Where the number stands: the token ids of a prompt, and of every grid value behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.number_grid import NumberGrid
from raft_peft.grid.tokenization import NumberSentences, ending

# So many tokens before the number fix how it is tokenized, see GridResolver. A tail may begin inside a character;
# then the next length is tried.
_TAIL_LENGTHS = (8, 10, 12, 16)
# Models of `tokenizers` that split a text by rules about neighbours alone.
_LOCAL_MODELS = ("BPE", "WordLevel", "WordPiece")
_TAILS_KEPT = 4_096


@dataclass(frozen=True)
class Context:
    """What stands before the number.

    Attributes:
        text: the prompt as text.
        separator: the text between the prompt and the number; may be empty.
        add_special_tokens: whether the tokenizer puts its leading special tokens (such as `<bos>`) in front. False
            for text from a chat template, which holds them already.
    """

    text: str
    separator: str
    add_special_tokens: bool = True

    @property
    def opening(self) -> str:
        return self.text + self.separator


@dataclass(frozen=True)
class ResolvedGrid:
    """A grid as token ids, in the context of one prompt.

    Attributes:
        prompt_ids: the ids of the prompt, leading special tokens included, ending where the number begins.
        token_ids: for each value of the grid, in order, the ids of the number, and of its end where that is a token
            or a text.
        target_ids: the ids of the target's text after the same prompt; empty where none was asked for.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]
    target_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Tail:
    """The grid behind the last tokens of a prompt.

    Attributes:
        text: of these tokens.
        lost: how many of them are part of the number instead: white space that its first token takes in.
        texts: of each value, with its end where that is a text.
        token_ids: for each value the ids of the number, and of its end.
    """

    text: str
    lost: int
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]


def default_separator(text: str) -> str:
    """One space, or nothing where the text already ends in white space."""
    return "" if text[-1:].isspace() else " "


def resolve(
    grid: NumberGrid,
    tokenizer: Any,
    prompt: str,
    *,
    separator: str | None = None,
    number_end: NumberEnd | None = None,
) -> ResolvedGrid:
    """Find the token ids of every value in the context of a plain-text prompt.

    Args:
        grid: the numbers.
        tokenizer: a Hugging Face tokenizer.
        prompt: the text after which the number stands.
        separator: the text between prompt and number; by default one space, or nothing where the prompt already ends
            in white space.
        number_end: what must follow a number; by default nothing.

    Raises:
        ValueError: the prompt is empty; a value merges into the prompt's last token, has a token that the tokenizer
            does not know, or has the same tokens as another value.
    """
    context = Context(prompt, default_separator(prompt) if separator is None else separator)
    resolved = GridResolver(grid, tokenizer, number_end).resolve([context])[0]
    if isinstance(resolved, ValueError):
        raise resolved
    return resolved


class GridResolver:
    """Resolves a grid in many contexts.

    Each value is tokenized as part of the whole sentence, prompt + separator + text. The tokens that all these
    sentences share with the tokenized prompt + separator are the prompt, the rest is the number. So " 3" is the one
    token `Ġ3` where the vocabulary has it, and `Ġ`, `3` where it has not; then the lone space ends the prompt.

    A large grid would have every prompt tokenized hundreds of times. A byte-pair encoding is the right one exactly
    where all pairs of neighbours are, so the last tokens of a prompt decide: the grid is resolved once behind each
    such tail, and every prompt with one of the values is compared with the whole sentence. Other kinds of tokenizers,
    and prompts that do not compare, take the whole sentences.

    Args:
        grid: the numbers.
        tokenizer: a Hugging Face tokenizer.
        number_end: what must follow a number; by default nothing.
    """

    def __init__(self, grid: NumberGrid, tokenizer: Any, number_end: NumberEnd | None = None):
        self.grid = grid
        self.tokenizer = tokenizer
        self._sentences = NumberSentences(grid, tokenizer, NumberEnd() if number_end is None else number_end)
        self._added_tokens = [_bare(token) for token in self._sentences.added_tokens]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_local = backend is not None and type(backend.model).__name__ in _LOCAL_MODELS
        self._tails: dict[tuple[int, ...], _Tail | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, so that the pickle does not change with the prompts that were resolved."""
        return GridResolver, (self.grid, self.tokenizer, self._sentences.number_end)

    def resolve(
        self, contexts: Sequence[Context], targets: Sequence[str] | None = None
    ) -> list[ResolvedGrid | ValueError]:
        """Resolve the grid in each context.

        Args:
            contexts: what stands before the number.
            targets: for each context a text to resolve with the grid, such as that of a number between grid values.

        Returns:
            For each context the resolved grid, or the error that says why it has none. Errors are returned, not
            raised, so that the caller can name every row that is wrong.
        """
        if not contexts:
            return []
        leading_ids = leading_special_ids(self.tokenizer, self.grid.texts[0])
        openings = self._sentences.encode(context.opening for context in contexts)
        tails = [self._tail(context, opening) for context, opening in zip(contexts, openings, strict=True)]
        # One value a row, each in its turn, as part of the whole sentence.
        turns = [row % len(self.grid) for row in range(len(contexts))]
        sentences = self._sentences.encode(
            context.opening + (self.grid.texts if tail is None else tail.texts)[turn]
            for context, tail, turn in zip(contexts, tails, turns, strict=True)
        )
        if targets is not None:
            targets_in_context = self._sentences.encode(
                context.opening + target for context, target in zip(contexts, targets, strict=True)
            )
        resolved: list[ResolvedGrid | ValueError] = []
        for row, (context, opening) in enumerate(zip(contexts, openings, strict=True)):
            try:
                prompt, token_ids = self._resolve_row(context, opening, tails[row], turns[row], sentences[row])
                target_ids = () if targets is None else self._target_ids(context, prompt, targets_in_context[row])
            except ValueError as error:
                resolved.append(error)
                continue
            prompt_ids = tuple(prompt)
            if context.add_special_tokens and prompt_ids[: len(leading_ids)] != leading_ids:
                prompt_ids = leading_ids + prompt_ids
            resolved.append(ResolvedGrid(prompt_ids, token_ids, target_ids))
        return resolved

    def _resolve_row(
        self, context: Context, opening: list[int], tail: _Tail | None, turn: int, sentence: list[int]
    ) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
        """The prompt's ids and those of each value, as the tail has them where it agrees with the whole sentence."""
        if not context.text.strip():
            raise ValueError("The prompt is empty. The model needs a text that the number follows.")
        if tail is not None:
            prompt = opening[: len(opening) - tail.lost]
            number = tail.token_ids[turn]
            following = tuple(sentence[len(prompt) :])
            if sentence[: len(prompt)] == prompt and following and number[: len(following)] == following:
                return prompt, tail.token_ids
        length, _, token_ids = self._sentences.split(context.opening, opening)
        return opening[:length], token_ids

    def _tail(self, context: Context, opening: list[int]) -> _Tail | None:
        """The grid behind the last tokens of a prompt; None where they are not enough to go by."""
        if not self._is_local:
            return None
        for length in _TAIL_LENGTHS:
            ids = tuple(opening[-length:])
            # Not asked for twice, since another thread may empty the memory in between.
            try:
                tail = self._tails[ids]
            except KeyError:
                if len(self._tails) >= _TAILS_KEPT:
                    self._tails.clear()
                tail = self._tails[ids] = self._resolve_tail(list(ids))
            if tail is not None and context.opening.endswith(tail.text):
                return tail
            if length >= len(opening):
                break
        return None

    def _resolve_tail(self, ids: list[int]) -> _Tail | None:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self._sentences.encode([text]) != [ids] or not self._decides(text):
            return None
        try:
            length, texts, token_ids = self._sentences.split(text, ids)
        except ValueError:
            return None
        return _Tail(text, len(ids) - length, texts, token_ids) if length > 0 else None

    def _decides(self, text: str) -> bool:
        """Whether nothing that begins before this text can reach into the number: no run of digits, which may be cut
        into groups from its beginning, and no added token."""
        bare = _bare(text)
        return not text.isnumeric() and not any(bare in token for token in self._added_tokens)

    def _target_ids(self, context: Context, prompt: list[int], sentence: list[int]) -> tuple[int, ...]:
        """The ids of the target behind the prompt of the grid."""
        if sentence[: len(prompt)] != prompt or len(sentence) == len(prompt):
            raise ValueError(
                f"The target's text begins inside the prompt {ending(context.text)!r}: the tokenizer gives "
                f"{self._sentences.token_texts(sentence[-6:])} with it, and the grid's numbers begin after "
                f"{self._sentences.token_texts(prompt[-3:])}. Scale the labels so that they are written like the grid "
                "(for example without a sign), or set another separator."
            )
        return tuple(sentence[len(prompt) :])


def leading_special_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids that the tokenizer puts before every plain text, such as `<bos>`; what it puts after is left out."""
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    full = tokenizer(text)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _bare(text: str) -> str:
    """A text without what a normalizer may change."""
    return "".join(text.casefold().replace("▁", " ").split())
