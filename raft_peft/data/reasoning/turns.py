"""The turn of a chat in which a reasoning and its score stand: what would end it before the score."""

from __future__ import annotations

from typing import Any

# Of Gemma, ChatML (Qwen, SmolLM, Phi), Llama 3 and Cohere, beside a tokenizer's own end of sequence.
_ENDS_OF_TURNS = ("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|END_OF_TURN_TOKEN|>")


def check_turn_is_open(prompt: str, tokenizer: Any) -> None:
    """Refuse a prompt behind which a model would begin a new turn, and no reasoning.

    Args:
        prompt: as text, with all that a chat template has written.
        tokenizer: the model's.

    Raises:
        ValueError: it ends in the end of a turn.
    """
    end = next((end for end in _ends(tokenizer) if prompt.rstrip().endswith(end)), None)
    if end is not None:
        raise ValueError(
            f"The prompt ends in {end!r}, which closes the turn before the reasoning and the score. Leave it out; of "
            "a chat, set a chat template with a generation prompt (`tokenizer.chat_template`), or let its last "
            "message be the beginning of the answer: {'role': 'assistant', 'content': '...'}."
        )


def check_turn_stays_open(reasoning: str, tokenizer: Any) -> None:
    """Refuse a reasoning that ends its turn.

    Raises:
        ValueError: it holds the end of a turn.
    """
    end = next((end for end in _ends(tokenizer) if end in reasoning), None)
    if end is not None:
        raise ValueError(
            f"The reasoning holds {end!r}, which closes the turn before the score. Leave it out: "
            f"row['reasoning'].split({end!r})[0]."
        )


def _ends(tokenizer: Any) -> list[str]:
    """The tokens that end a turn."""
    known = [
        end for end in _ENDS_OF_TURNS if tokenizer.convert_tokens_to_ids(end) not in (None, tokenizer.unk_token_id)
    ]
    return [end for end in dict.fromkeys([tokenizer.eos_token, *known]) if end]
