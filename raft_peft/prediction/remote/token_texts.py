"""Tokens by their texts, for servers that name them by nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from operator import itemgetter
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenTexts:
    """The text by which a server names each token, and which of these texts are those of one token alone.

    Args:
        tokenizer: the model's.
        seen: texts that the server has returned. They tell whether it decodes tokens (" 4") or gives them as they
            stand in the vocabulary ("Ġ4").

    Raises:
        ValueError: most of these texts are no tokens of this tokenizer.
    """

    def __init__(self, tokenizer: Any, seen: Collection[str]):
        ids = list(range(len(tokenizer)))
        decoded = tokenizer.batch_decode([[token_id] for token_id in ids], clean_up_tokenization_spaces=False)
        pieces = tokenizer.convert_ids_to_tokens(ids)
        known, texts = max(
            ((len(set(seen).intersection(texts)), texts) for texts in (decoded, pieces)), key=itemgetter(0)
        )
        if 2 * known <= len(set(seen)):
            raise ValueError(
                f"The server names tokens by their texts, {', '.join(map(repr, list(seen)[:5]))}, and most of these "
                "are not tokens of the tokenizer here. Pass the tokenizer of the model that the server runs."
            )
        self._texts: list[str] = texts
        # Single bytes stand for what the vocabulary has no other token for; decoded they look like tokens that it has.
        self._uses = Counter(
            text for text, piece in zip(texts, pieces, strict=True) if not _BYTE.fullmatch(piece or "")
        )

    def of(self, token_id: int) -> str:
        """The text of a token.

        Raises:
            ValueError: other tokens have it too.
        """
        text = self._texts[token_id]
        if self._uses[text] > 1:
            raise ValueError(
                f"The server names tokens by their texts, and {text!r} is that of {self._uses[text]} tokens. Use a "
                "server that returns the ids of tokens, such as vLLM or llama.cpp's llama-server."
            )
        return text
