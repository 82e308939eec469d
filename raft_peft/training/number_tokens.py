"""Tokens of their own for numbers: added to model and tokenizer, trained with the adapter, saved as a few rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from tokenizers import AddedToken

from raft_peft.forward.model import check_final_logits
from raft_peft.grid import NumberGrid, decimals_of

INITS = ("zero", "first", "average", "random")


def add_number_tokens(
    model: Any,
    tokenizer: Any,
    values: Iterable[float] | Mapping[float, str] | NumberGrid,
    *,
    init: str = "average",
    granularity: float | None = None,
) -> NumberGrid:
    """Give each number a token of its own (the paper's Tables 17 to 19), so that 3.5 is one token like 3.

    ```python
    grid = add_number_tokens(model, tokenizer, (0, 5), granularity=0.1)
    trainer = RegressionAwareTrainer(model, grid=grid, processing_class=tokenizer, peft_config=LoraConfig(), ...)
    ```

    Model and tokenizer are changed in place, before any adapter. The model keeps the new ids as `number_token_ids`, a
    dict from text to id, from which the trainer knows what the adapter has to train and save. A token is read where
    its text stands alone: "0.5" in "a 0.5", not in "10.5" or "0.55".

    Args:
        model: a causal language model without an adapter, possibly quantized.
        tokenizer: its tokenizer.
        values: a list of numbers, each written with as many decimals as the longest needs and at least one, since "3"
            is a token already and "3.0" becomes one; or a mapping `{number: text}` or a `NumberGrid`, whose texts are
            taken as they are; or, with `granularity`, the least and the greatest number.
        init: what the new rows of the embedding start as, and those of an output matrix of its own with its bias
            (Table 17): `zero`; `first` or `average`, the row of the first token that wrote the number until now, or
            the mean of the rows of all of them; `random`, normal with mean zero and the standard deviation of the
            matrix' entries.
        granularity: the distance of two neighbours (Table 17 compares 0.05, 0.1, 0.2, 0.5 and 1.0).

    Returns:
        The grid of the new tokens, to pass on as `grid`.

    Raises:
        ValueError: values that are no grid; a text that is a token already, as after a second call; a model with an
            adapter, with a quantized vocabulary, or that does not fit the tokenizer.
    """
    grid = _grid_of_decimals(values, granularity)
    if init not in INITS:
        raise ValueError(f"init={init!r} is not known. Choose one of {', '.join(INITS)}.")
    if isinstance(model, PeftModel):
        raise ValueError(
            "The model has an adapter already, which would neither train nor save the new tokens. Add them to the "
            "base model, and pass `peft_config` to the trainer."
        )
    check_final_logits(model)
    known = len(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if known > rows:
        raise ValueError(
            f"The tokenizer has {known} tokens, but the model's embedding only {rows} rows. Pass the tokenizer that "
            "belongs to the model, or resize the model to it first: model.resize_token_embeddings(len(tokenizer))."
        )
    if not all(parameter.is_floating_point() for parameter in _vocabulary_parameters(model)):
        raise ValueError(
            "The embedding or the output matrix is quantized, and no row can be added to it. Keep it out of the "
            "quantization: BitsAndBytesConfig(llm_int8_skip_modules=['lm_head'], ...)."
        )
    _check_new(grid, tokenizer)

    pieces = [_token_ids(tokenizer, text) for text in grid.texts]
    tokenizer.add_tokens([AddedToken(text, single_word=True, normalized=False, special=False) for text in grid.texts])
    ids = tokenizer.convert_tokens_to_ids(list(grid.texts))
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for parameter in _vocabulary_parameters(model):
            parameter[ids] = _initial_rows(parameter[:known], pieces, init).to(parameter.dtype)
    earlier = getattr(model, "number_token_ids", {})
    model.number_token_ids = {**earlier, **dict(zip(grid.texts, ids, strict=True))}
    return grid


def start_rows_at_random(model: Any, token_ids: Iterable[int]) -> None:
    """Start the rows of tokens that there are at random numbers, in place (the paper's Table 18).

    They are normal, with mean zero and the standard deviation of the matrix' entries, in the embedding and in an
    output matrix of its own with its bias.

    Args:
        model: a causal language model whose vocabulary is not quantized.
        token_ids: of the tokens.
    """
    ids = sorted(set(token_ids))
    with torch.no_grad():
        for parameter in _vocabulary_parameters(model):
            parameter[ids] = _initial_rows(parameter, [[one] for one in ids], "random").to(parameter.dtype)


def check_number_tokens(model: Any, grid: NumberGrid, processing_class: Any) -> None:
    """Make sure that a model with tokens of numbers is used with them.

    Raises:
        ValueError: the tokenizer does not have them, or the grid is of other texts.
    """
    ids = getattr(model, "number_token_ids", {})
    if not ids:
        return
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    known = {} if tokenizer is None else tokenizer.get_added_vocab()
    if not ids.items() <= known.items():
        raise ValueError(
            f"The model has the tokens {_shown(ids)}, and the tokenizer does not have them. Pass the one that "
            "`add_number_tokens` changed: processing_class=tokenizer."
        )
    if not ids.keys() >= set(grid.texts):
        raise ValueError(
            f"The model has the tokens {_shown(ids)}, but the grid is of the texts {_shown(grid.texts)}. Pass the "
            "grid that `add_number_tokens` returned."
        )


def with_number_tokens(peft_config: PeftConfig | None, model: Any) -> PeftConfig | None:
    """The adapter's configuration with the tokens of numbers among its `trainable_token_indices`.

    They join the indices that it has. A matrix that it trains whole, in `modules_to_save`, is left alone.

    Raises:
        ValueError: the adapter cannot train single rows of the matrices, or would lose the output's bias.
    """
    ids = list(getattr(model, "number_token_ids", {}).values())
    if not ids:
        return peft_config
    if isinstance(model, PeftModel):
        if not _rows_held(model).issuperset(ids):
            raise ValueError(
                "The model's adapter does not train its tokens of numbers. Pass the base model, and `peft_config` to "
                "the trainer, which adds them to it."
            )
        return peft_config
    if peft_config is None:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {layer: path for path, layer in model.named_modules() if layer in (embedding, head)}
    tied = head.weight is embedding.weight
    whole = [layer for layer in paths if _named(paths[layer], getattr(peft_config, "modules_to_save", None))]
    if len(whole) == 2 or (whole and tied):
        return peft_config
    by_row = [embedding, head] if tied else [layer for layer in (embedding, head) if layer not in whole]
    names = [_last(paths[layer]) for layer in by_row]
    _check_trains_rows(peft_config, names)
    if head in by_row and getattr(head, "bias", None) is not None:
        raise ValueError(
            f"{names[-1]!r} has a bias, which PEFT leaves out of the logits if it trains single tokens. Train all of "
            f"it: modules_to_save={names if tied else names[-1:]}."
        )
    given = peft_config.trainable_token_indices or {}
    if not isinstance(given, Mapping):
        given = {_last(paths[embedding]): given}
    indices = dict(given)
    for layer in by_row:
        key = _named(paths[layer], given)
        # A tied output matrix follows the embedding, whose rows are named already.
        if key is None and tied and layer is head:
            continue
        indices[key or _last(paths[layer])] = sorted({*given.get(key, ()), *ids})
    return dataclasses.replace(peft_config, trainable_token_indices=indices)


@contextmanager
def rows_saved_alone(model: Any) -> Iterator[None]:
    """Keep `save_pretrained` from writing the whole embedding of which the adapter holds every new row.

    PEFT writes it wherever it was resized; the rows are all that the base model lacks.
    """
    held = _rows_held(model) if isinstance(model, PeftModel) else set()
    if not held or not held.issuperset(_rows_beyond_base(model)):
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    try:
        yield
    finally:
        del model.save_pretrained


def _grid_of_decimals(
    values: Iterable[float] | Mapping[float, str] | NumberGrid, granularity: float | None
) -> NumberGrid:
    if granularity is None:
        grid = NumberGrid(values)
        if isinstance(values, Mapping | NumberGrid):
            return grid
    else:
        ends: Any = values
        try:
            low, high = ends
        except (TypeError, ValueError):
            raise ValueError(
                f"With `granularity`, `values` are the least and the greatest number, such as (0, 5); got {values!r}."
            ) from None
        grid = NumberGrid.spaced(low, high, granularity)
    decimals = max(1, *map(decimals_of, grid.values))
    return NumberGrid({value: f"{value:.{decimals}f}" for value in grid.values})


def _check_new(grid: NumberGrid, tokenizer: Any) -> None:
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    present = [text for text in grid.texts if text in vocabulary]
    if not present:
        return
    if set(present) & added.keys():
        raise ValueError(
            f"The tokenizer has the tokens {_shown(present)} already, as after an earlier call. Use the grid that it "
            "returned. To start again, load the model and the tokenizer again."
        )
    raise ValueError(
        f"{_shown(present)} are ordinary tokens of this tokenizer, and can be in a grid as they are. For new tokens, "
        "write them in another way, such as {1: '1.0'}."
    )


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens that write a number, without the lone space that some tokenizers put before every text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token_id for token_id in ids if tokenizer.decode([token_id]).strip()]


def _vocabulary_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The embedding, the output matrix where it is another one, and its bias where it has one; a token each row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    parameters = [embedding.weight]
    if head.weight is not embedding.weight:
        parameters.append(head.weight)
    if getattr(head, "bias", None) is not None:
        parameters.append(head.bias)
    return parameters


def _initial_rows(known: torch.Tensor, pieces: Sequence[Sequence[int]], init: str) -> torch.Tensor:
    if init == "zero":
        return known.new_zeros(len(pieces), *known.shape[1:])
    if init == "random":
        return torch.randn(len(pieces), *known.shape[1:], device=known.device) * known.std()
    if init == "first":
        return known[[ids[0] for ids in pieces]]
    return torch.stack([known[list(ids)].float().mean(0) for ids in pieces])


def _check_trains_rows(peft_config: PeftConfig, names: Sequence[str]) -> None:
    if not hasattr(peft_config, "trainable_token_indices"):
        raise ValueError(
            f"The model has tokens of numbers, and {type(peft_config).__name__} cannot train single tokens. Use "
            f"LoraConfig, or train the matrices whole: modules_to_save={names}."
        )
    targeted = [name for name in names if _named(name, peft_config.target_modules)]
    if targeted:
        raise ValueError(
            f"{targeted[0]!r} is among the adapter's target_modules, and PEFT cannot also train single tokens of it. "
            "Leave it out."
        )


def _rows_held(model: PeftModel) -> set[int]:
    """The rows that the adapter holds of both the embedding and the output matrix."""
    held = set(range(model.config.get_text_config().vocab_size))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(layer, TrainableTokensWrapper):
            held &= set(layer.token_adapter.token_indices.get(model.active_adapter, ()))
        elif not isinstance(layer, ModulesToSaveWrapper):
            return set()
    return held


def _rows_beyond_base(model: PeftModel) -> range:
    """The rows that the base model's saved embedding lacks; all rows where it is saved nowhere."""
    peft_config = model.active_peft_config
    rows = model.config.get_text_config().vocab_size
    try:
        base = type(model.config).from_pretrained(
            peft_config.base_model_name_or_path or "", revision=peft_config.revision
        )
    except (OSError, ValueError):
        return range(rows)
    return range(base.get_text_config().vocab_size, rows)


def _named(path: str, names: Any) -> str | None:
    """Which of the names, as PEFT reads them, is that of a module."""
    if names is None or isinstance(names, str):
        return None
    return next((name for name in names if path.endswith(name)), None)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _shown(texts: Iterable[str]) -> str:
    first, *more = map(repr, texts)
    return ", ".join([first, *more[:3], *(["..."] if len(more) > 3 else [])])
