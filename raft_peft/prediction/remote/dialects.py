"""How a server can be asked for the probabilities of a grid's tokens: found out with a prompt, then used for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.data.prompts import EncodedPrompt
from raft_peft.prediction.remote.completions_api import Connection, NextToken, RefusedError, ServerError
from raft_peft.prediction.remote.token_texts import TokenTexts

# How many of the most probable tokens are asked for, one number after the other, where fewer do not suffice.
_MORE_TOKENS = (200, 2000)


@dataclass(frozen=True)
class Dialect:
    """A way to ask for probabilities.

    Attributes:
        ids_at_once: how many tokens can be asked for by their ids; 0 where only the most probable ones can.
        top: how many of the most probable tokens are asked for; None for as many as there are ids.
        as_ids: whether to ask that tokens be named by their ids.
        extensible: whether to ask for more of them where they do not suffice.
    """

    ids_at_once: int = 0
    top: int | None = None
    as_ids: bool = False
    extensible: bool = False

    def ask(self, connection: Connection, prompt_ids: Sequence[int], ids: Sequence[int], top: int | None) -> NextToken:
        """Ask for the next token's probabilities.

        Args:
            connection: to the server.
            prompt_ids: the prompt's tokens.
            ids: those whose probabilities are asked for.
            top: how many of the most probable tokens are asked for; None for as many as there are ids.

        Raises:
            RefusedError, ServerError: as `Connection.next_token` does.
        """
        fields: dict[str, Any] = {}
        if self.ids_at_once:
            fields["logprob_token_ids"] = list(ids)
        if self.as_ids:
            fields["return_tokens_as_token_ids"] = True
        return connection.next_token(prompt_ids, len(ids) if top is None else top, **fields)


# In the order in which they are tried. The first is vLLM's, which takes 128 ids at most. It is asked for one most
# probable token besides, so that a server that passes over the ids cannot return them all by chance. The second is for
# servers that want as many most probable tokens as ids, of which vLLM by default allows 20. OpenAI's limit is 5.
_DIALECTS = (
    Dialect(ids_at_once=128, top=1, as_ids=True),
    Dialect(ids_at_once=20, as_ids=True),
    Dialect(top=20, as_ids=True, extensible=True),
    Dialect(top=20, extensible=True),
    Dialect(top=5),
)
# These are more than a server returns that passes over the ids: the most probable token and the one that was drawn.
_FEWEST_IDS = 3


@dataclass(frozen=True)
class Answer:
    """What a server says of the grid behind a prompt: one row of a [`PartialGridDistribution`].

    Attributes:
        log_probs: of each number of the grid, -inf where it was not returned.
        ceiling, rest: as in [`NextToken`].
    """

    log_probs: list[float]
    ceiling: float
    rest: float


class SpokenDialect:
    """The dialect that a server was found to speak, and what its answers have shown of it. For several threads.

    Args:
        dialect: the way to ask.
        token_texts: the texts of tokens, where the server names tokens by these; None where it names them by ids.
    """

    def __init__(self, dialect: Dialect, token_texts: TokenTexts | None):
        self._dialect = dialect
        self._token_texts = token_texts
        self._more_tokens: tuple[int, ...] = _MORE_TOKENS if dialect.extensible else ()

    @classmethod
    def found_with(cls, connection: Connection, prompt: EncodedPrompt, tokenizer: Any) -> SpokenDialect:
        """Find out how a server can be asked, by asking.

        Args:
            connection: to the server.
            prompt: any, whose numbers are one token each.
            tokenizer: the model's.

        Raises:
            RefusedError: the server takes this prompt in no way.
            ServerError: as `Connection.next_token` does.
            ValueError: the server names tokens by texts, and these are no tokens of the tokenizer.
        """
        ids = _grid_ids(prompt)
        refusal: RefusedError | None = None
        passes_over_ids = False
        for dialect in _DIALECTS:
            if dialect.ids_at_once and passes_over_ids:
                continue
            asked = _padded(ids[: dialect.ids_at_once])
            try:
                found = dialect.ask(connection, prompt.input_ids, asked, dialect.top)
            except RefusedError as error:
                refusal = error
                continue
            if dialect.ids_at_once and not all(token_id in found.log_probs for token_id in asked):
                passes_over_ids = True
                continue
            if not found.by_text:
                return cls(dialect, None)
            seen = [token for token in found.log_probs if isinstance(token, str)]
            return cls(dialect, TokenTexts(tokenizer, seen))
        # The last dialect asks for nothing that a server could pass over, so it has been refused.
        assert refusal is not None
        raise refusal

    def ask(self, connection: Connection, prompt: EncodedPrompt, suffices: Callable[[Answer], bool]) -> Answer:
        """Ask for the probabilities of the grid's numbers behind a prompt.

        Args:
            connection: to the server.
            prompt: whose numbers are one token each.
            suffices: whether an answer from which numbers are missing is good enough. Where it is not, the server is
                asked for more of the most probable tokens, as far as it gives them.

        Raises:
            RefusedError: the server does not take the prompt.
            ServerError: it answers in another way than before, or as `Connection.next_token` says.
        """
        if self._dialect.ids_at_once:
            return self._ask_for_ids(connection, prompt)
        return self._ask_for_most_probable(connection, prompt, suffices)

    def _ask_for_ids(self, connection: Connection, prompt: EncodedPrompt) -> Answer:
        ids, at_once = _grid_ids(prompt), self._dialect.ids_at_once
        log_probs: dict[int | str, float] = {}
        for start in range(0, len(ids), at_once):
            asked = _padded(ids[start : start + at_once])
            log_probs |= self._dialect.ask(connection, prompt.input_ids, asked, self._dialect.top).log_probs
        absent = [token_id for token_id in ids if token_id not in log_probs]
        if absent:
            raise ServerError(
                f"{connection.shown} returned no log-probabilities of the tokens {absent}, which it was asked for; "
                "before, it returned them. Are there several servers behind this address?"
            )
        return Answer([log_probs[token_id] for token_id in ids], 0.0, 0.0)

    def _ask_for_most_probable(
        self, connection: Connection, prompt: EncodedPrompt, suffices: Callable[[Answer], bool]
    ) -> Answer:
        ids = _grid_ids(prompt)
        found = self._dialect.ask(connection, prompt.input_ids, ids, self._dialect.top)
        for more in self._more_tokens:
            if suffices(self._answer(connection, ids, found)):
                break
            try:
                again = self._dialect.ask(connection, prompt.input_ids, ids, more)
            except RefusedError:
                again = found
            if len(again.log_probs) <= len(found.log_probs):
                # The server gives no more than that, for any prompt.
                self._more_tokens = tuple(one for one in self._more_tokens if one < more)
                break
            found = again
        return self._answer(connection, ids, found)

    def _answer(self, connection: Connection, ids: Sequence[int], found: NextToken) -> Answer:
        """The grid's share of what the server returned."""
        tokens: list[int | str] = list(ids)
        if found.by_text:
            if self._token_texts is None:
                raise ServerError(
                    f"{connection.shown} names tokens by their texts; before, it named them by their ids. Are there "
                    "several servers behind this address?"
                )
            tokens = [self._token_texts.of(token_id) for token_id in ids]
        return Answer([found.log_probs.get(token, -math.inf) for token in tokens], found.ceiling, found.rest)


def _grid_ids(prompt: EncodedPrompt) -> list[int]:
    """The token of each number of the grid, where each is one."""
    return [token_ids[0] for token_ids in prompt.grid_token_ids]


def _padded(ids: Sequence[int]) -> list[int]:
    """The ids, and others where they are too few to tell a server that takes them from one that passes over them."""
    others = (token_id for token_id in itertools.count() if token_id not in ids)
    return [*ids, *itertools.islice(others, max(0, _FEWEST_IDS - len(ids)))]
