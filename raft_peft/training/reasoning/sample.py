"""A sample of an evaluation: the reasonings that rows have, and those that the model writes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raft_peft.data.batches import RegressionCollator
from raft_peft.data.prompts import PromptEncoder
from raft_peft.data.reasoning.reasonings import REASONING
from raft_peft.forward.model import device_of
from raft_peft.forward.writing import write_texts
from raft_peft.training.batch_reading import BatchReader

# A written reasoning ends after so many times the tokens of those in the rows.
_LONGER = 2


def first_reasoning(row: Mapping[str, Any], tokenizer: Any) -> dict[str, str]:
    """The prompt of an encoded row, and its first reasoning with the words that lead to the score."""
    prompt, reasoning = _parts(row)
    texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, reasoning))
    return dict(zip(("prompt", REASONING), texts, strict=True))


def write_and_read(
    model: Any,
    encoder: PromptEncoder,
    reader: BatchReader,
    collator: RegressionCollator,
    rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The likeliest reasoning that the model writes behind each prompt, and its prediction behind that.

    Args:
        model: without a wrapper for distributed training.
        encoder, reader, collator: of the run.
        rows: encoded.

    Returns:
        Of each row `written_reasoning` and `written_prediction`; of a row without a reasoning an empty text and NaN.
    """
    prefix = encoder.score_prefix
    assert prefix is not None
    parts = [_parts(row) for row in rows]
    places = [place for place, (_, reasoning) in enumerate(parts) if reasoning]
    found: list[dict[str, Any]] = [{"written_reasoning": "", "written_prediction": float("nan")} for _ in rows]
    if not places:
        return found
    prompts = [parts[place][0] for place in places]
    longest = max(len(parts[place][1]) for place in places)
    written = write_texts(
        model,
        encoder.tokenizer,
        prompts,
        count=1,
        temperature=0.0,
        max_new_tokens=_LONGER * longest,
        stop=prefix.end_of_reasoning,
    )
    texts = [texts[0].text.strip() for texts in written]
    encoded = encoder.encode(
        [{"input_ids": ids, REASONING: text} for ids, text in zip(prompts, texts, strict=True)],
        is_written_by_model=True,
    )
    plain = RegressionCollator(collator.pad_token_id, collator.pad_to_multiple_of)
    batch = plain([{"input_ids": one.input_ids, "grid_token_ids": one.grid_token_ids} for one in encoded])
    device = device_of(model.get_input_embeddings())
    read = reader.rows(model, {name: values.to(device) for name, values in batch.items()})
    for place, text, prediction in zip(places, texts, read["predictions"].tolist(), strict=True):
        found[place] = {"written_reasoning": text, "written_prediction": prediction}
    return found


def _parts(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens of an encoded row's prompt, and of its first reasoning; none where it has none."""
    ids, count = row["input_ids"][0], row["reasoning_tokens"][0]
    return ids[: len(ids) - count], ids[len(ids) - count :]
