"""`RegressionPredictor`: from a saved folder, or a base model and a grid, to numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from raft_peft.data.batches import RegressionCollator, batches_by_length
from raft_peft.data.prompts import EncodedPrompt, PromptEncoder, as_rows
from raft_peft.distribution import GridDistribution
from raft_peft.forward.attention import DENSE
from raft_peft.forward.cpu_precision import warn_where_bf16_is_emulated
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import device_of
from raft_peft.forward.prefix_cache import PrefixCache, common_prefix
from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.readout import Reading, Readout, joined
from raft_peft.methods.saved_folder import (
    CALIBRATION_NAME,
    HEAD_FILE,
    RAFT_CONFIG_NAME,
    RaftConfig,
    find_file,
    hub_options,
)
from raft_peft.prediction.calibration import Calibration, calibration_of
from raft_peft.prediction.opening import open_model

# A shorter beginning in common is not worth a cache.
_SHORTEST_PREFIX = 8


class PredictionsWithIntervals(NamedTuple):
    """One number a prompt, and the ends of the interval around each, all of shape (prompts,)."""

    predictions: np.ndarray
    low: np.ndarray
    high: np.ndarray


class RegressionPredictor:
    """Predicts numbers with a language model, as it was trained or zero-shot.

    ```python
    predictor = RegressionPredictor.from_pretrained("my-raft-adapter")
    stars = predictor.predict(["Review: It broke on day two. Stars:", "Review: Best purchase ever. Stars:"])
    ```

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        grid: the numbers that it may answer with, as for [`RegressionAwareTrainer`].
        separator: text between prompt and number; None for the default, see [`RegressionAwareConfig`].
        max_length: the most tokens of a prompt; a longer one loses its beginning. None for no limit.
        head: a head of yours, for a model that was trained with it.
        grid_token_ids: the tokens of each grid value in training, for a head that starts from them.
        autocast: the dtype in which products are computed, whatever that of the weights: `"bfloat16"`, `"float16"`, or
            `"float32"` and None for that of the weights.
        settings: of [`MethodSettings`]: `method`, `decision`, `renormalize` and so on.

    Raises:
        ValueError: settings that do not exist or do not go together, or a model that cannot be read like this.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid,
        *,
        separator: str | None = None,
        max_length: int | None = None,
        head: Head | None = None,
        grid_token_ids: Sequence[Sequence[int]] | None = None,
        autocast: str | torch.dtype | None = None,
        **settings: Any,
    ):
        self.settings = MethodSettings(**settings)
        self.settings.check_method()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.grid = NumberGrid(grid)
        self._encoder = PromptEncoder(
            tokenizer,
            self.grid,
            separator=separator,
            max_length=max_length,
            number_end=self.settings.end_of_numbers(tokenizer),
        )
        self._encoded_as = {"separator": separator, "max_length": max_length}
        ids = None if grid_token_ids is None else tuple(map(tuple, grid_token_ids))
        self.readout = Readout(
            model,
            tokenizer,
            self.grid,
            self.settings,
            grid_token_ids=ids,
            head=head,
        )
        self.calibration: Calibration | None = None
        self._parts = PartsThatFit()
        self._autocast = _autocast_dtype(autocast)
        if self._autocast == torch.bfloat16 and device_of(model.get_input_embeddings()).type == "cpu":
            warn_where_bf16_is_emulated("Set autocast='float32'.")
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._collator = RegressionCollator(pad_token_id=pad_token_id or 0)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_model: str | Path,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
        dtype: str | torch.dtype | None = None,
        quantization_config: Any = None,
        *,
        device_map: Any = None,
        separator: str | None = None,
        max_length: int | None = None,
        method: str | None = None,
        decision: str | None = None,
        renormalize: bool | None = None,
        attention: str | None = None,
        num_samples: int | None = None,
        number_end: str | None = None,
        end_every_number: bool | None = None,
        constrained: bool | None = None,
        head: Head | None = None,
        autocast: str | torch.dtype | None = None,
        **model_kwargs: Any,
    ) -> RegressionPredictor:
        """Load what `trainer.save_model` wrote, or a base model for zero-shot prediction.

        Args:
            folder_or_model: a folder or Hub repository, with a `raft_config.json` or with `grid`.
            grid: the numbers, for a model without `raft_config.json`; or instead of the saved ones.
            dtype: of the weights. By default as in training; for zero-shot, as the model was saved.
            quantization_config: such as a `BitsAndBytesConfig`. By default as in training; False for none.
            device_map: by default all on the GPU where there is one, else on the CPU.
            separator, max_length, decision, renormalize, attention, number_end, end_every_number, constrained:
                instead of the saved settings.
            method, num_samples: see [`MethodSettings`]; by default as trained, or raft. One without parameters of its
                own reads any model: `rail`, `zero_shot`.
            head: the head of yours that the model was trained with, made as it was then; its parameters are loaded.
            autocast: see [`RegressionPredictor`]; by default as in training.
            model_kwargs: passed on to the model's `from_pretrained`, such as `attn_implementation`, `revision` or
                `token`.

        Raises:
            ValueError: no `raft_config.json` and no grid; a `raft_config.json` that does not fit the tokenizer; a head
                that is missing or does not fit.
        """
        name = str(folder_or_model)
        if not Path(name).exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
            raise FileNotFoundError(
                f"There is no folder {name!r}. Pass the folder of a saved model, or a Hub repository."
            )
        hub = hub_options(model_kwargs)
        config_path = find_file(name, RAFT_CONFIG_NAME, hub)
        saved = None if config_path is None else RaftConfig.load(config_path)
        own_grid = grid is None
        if saved is not None and own_grid:
            grid = saved.grid
        if grid is None:
            raise ValueError(
                f"{name!r} has no {RAFT_CONFIG_NAME}, so its grid is not known. Pass grid=, such as "
                "grid=[1, 2, 3, 4, 5], or a folder that RegressionAwareTrainer.save_model wrote."
            )
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=model_kwargs.get("trust_remote_code", False), **hub
        )
        settings: dict[str, Any] = {}
        grid_token_ids = None
        if saved is not None:
            if own_grid:
                saved.check_tokens(tokenizer)
            if saved.head is not None and head is None:
                raise ValueError(
                    f"{name!r} was trained with a head of your own, {saved.head}. Pass `head=`, made as it was in "
                    "training; its parameters are loaded."
                )
            dtype = saved.dtype if dtype is None else dtype
            autocast = saved.autocast if autocast is None else autocast
            if saved.attn_implementation in DENSE:  # others may not be installed here
                model_kwargs.setdefault("attn_implementation", saved.attn_implementation)
            separator = saved.separator if separator is None else separator
            max_length = saved.max_length if max_length is None else max_length
            grid_token_ids = saved.token_ids
            taken = METHODS[saved.method if method is None else method].takes if method in (None, *METHODS) else ()
            settings = {
                setting: value for setting, value in saved.method_settings().items() if setting in ("method", *taken)
            }
            if method == "rail" and num_samples is None:  # which then decodes nothing
                settings.pop("constrained", None)
        asked = {
            "method": method,
            "decision": decision,
            "renormalize": renormalize,
            "attention": attention,
            "num_samples": num_samples,
            "number_end": number_end,
            "end_every_number": end_every_number,
            "constrained": constrained,
        }
        settings |= {setting: value for setting, value in asked.items() if value is not None}
        if dtype is not None:
            model_kwargs["dtype"] = dtype
        if quantization_config:
            model_kwargs["quantization_config"] = quantization_config
        elif quantization_config is None and saved is not None:
            model_kwargs["quantization"] = saved.quantization
        if device_map is None and torch.accelerator.is_available():
            device_map = {"": torch.accelerator.current_accelerator()}
        if device_map is not None:
            model_kwargs["device_map"] = device_map
        model = open_model(name, tokenizer, hub, **model_kwargs)
        predictor = cls(
            model,
            tokenizer,
            NumberGrid(grid),
            separator=separator,
            max_length=max_length,
            head=head,
            grid_token_ids=grid_token_ids,
            autocast=autocast,
            **settings,
        )
        if predictor.readout.has_parameters:
            head_path = find_file(name, HEAD_FILE, hub)
            if head_path is None:
                raise ValueError(
                    f"{name!r} has no {HEAD_FILE}, and the head of method {predictor.settings.method!r} has "
                    "parameters. Load a folder that RegressionAwareTrainer.save_model wrote with it, or use "
                    "method='rail'."
                )
            predictor.readout.load_head(head_path)
        calibration_path = find_file(name, CALIBRATION_NAME, hub)
        if calibration_path is not None:
            predictor.calibration = Calibration.load(calibration_path)
        return predictor

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the numbers that there are probabilities for, in the order of a distribution's values."""
        values = self.readout.values.tolist()
        if values == np.asarray(self.grid.values, np.float32).tolist():
            return self.grid.texts
        return tuple(number_text(value) for value in values)

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        interval: None = None,
        show_progress: bool | None = None,
    ) -> np.ndarray: ...

    @overload
    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        interval: float,
        show_progress: bool | None = None,
    ) -> PredictionsWithIntervals: ...

    def predict(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        interval: float | None = None,
        show_progress: bool | None = None,
    ) -> np.ndarray | PredictionsWithIntervals:
        """Predict one number for each prompt.

        Prompts of like length are run together, and what they all begin with once for all.

        Args:
            prompts: texts, chats (lists of messages), or rows (dicts with `prompt`, and for a chat optionally
                `tools` and `chat_template_kwargs`). Any iterable; it is read as it is needed, so its length does not
                matter.
            batch_size: the most prompts in a forward pass.
            batch_tokens: the most tokens in a forward pass, with padding and without what the prompts begin with in
                common; a longer prompt is run alone.
            interval: the share of labels that intervals around the predictions are to cover, such as 0.9, after
                `calibrate`; see [`Calibration`].
            show_progress: whether to show a progress bar; by default where there is more than one batch.

        Returns:
            The numbers in the unit of the labels, float32, of shape (prompts,), in the order of the prompts; with
            `interval` a named tuple of these as `predictions`, and the ends of the intervals as `low` and `high`.

        Raises:
            ValueError: intervals were asked for, and there is no calibration for them, or on too few rows.
        """
        if interval is not None:
            self.calibrated().half_width(interval)  # before hours of prediction
        chunks = self.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress)
        predictions = torch.cat([torch.empty(0), *(chunk.predictions for chunk in chunks)]).numpy()
        if interval is None:
            return predictions
        return PredictionsWithIntervals(predictions, *self.calibrated().intervals(predictions, interval))

    def calibrate(
        self,
        prompts: Iterable[Any],
        labels: Sequence[float],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        show_progress: bool | None = None,
    ) -> Calibration:
        """Learn from held-out rows how far the predictions err, for `predict(..., interval=0.9)`.

        ```python
        predictor.calibrate(prompts, labels).save("my-raft-adapter")  # from where `from_pretrained` reads it again
        ```

        Args:
            prompts: as `predict` takes them, neither those of training nor those by which a checkpoint was chosen.
            labels: their targets, as many.
            batch_size, batch_tokens, show_progress: as in `predict`.

        Raises:
            ValueError: there are no rows, or labels or predictions that are not numbers.
        """
        readings = list(self.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress))
        whole = joined(readings) if readings else Reading(torch.empty(0), None, None)
        self.calibration = calibration_of(
            whole.predictions.numpy(),
            np.asarray(labels, dtype=np.float64),
            whole.distribution,
            self.grid.values,
            self._read_as(),
        )
        return self.calibration

    def calibrated(self) -> Calibration:
        """The calibration, where there is one for the way in which numbers are read.

        Raises:
            ValueError: there is none, or it was made for other settings.
        """
        cure = "Calibrate on held-out rows first: predictor.calibrate(prompts, labels)."
        if self.calibration is None:
            raise ValueError(f"The model is not calibrated. {cure}")
        if dict(self.calibration.settings) != self._read_as():
            changed = [name for name, value in self._read_as().items() if self.calibration.settings.get(name) != value]
            raise ValueError(f"The calibration was made with another {', '.join(changed)}. {cure}")
        return self.calibration

    def _read_as(self) -> dict[str, Any]:
        """What a calibration depends on, besides the model."""
        return {**self.settings.method_settings(), **self._encoded_as, "grid": [list(pair) for pair in self.grid]}

    def predict_distribution(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        calibrated: bool = False,
        show_progress: bool | None = None,
    ) -> GridDistribution:
        """The whole distribution over the grid for each prompt: probabilities, mass on and off the grid, entropy.

        Takes what `predict` takes. The result is on the CPU, over the whole vocabulary, not renormalised.

        Args:
            calibrated: give it at the temperature that `calibrate` found, renormalised over the grid: as sure as it is
                right.

        Raises:
            ValueError: the method gives a number alone, or it is not calibrated.
        """
        temperature = self.calibrated().temperature if calibrated else None
        log_probs = [torch.empty(0, len(self.readout.values))]
        for chunk in self.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress):
            if chunk.distribution is None:
                raise ValueError(
                    f"Method {self.settings.method!r} gives one number a prompt, and no distribution over the grid. "
                    "Use `predict`, or a method that does, such as raft."
                )
            log_probs.append(chunk.distribution.log_probs)
        distribution = GridDistribution(torch.cat(log_probs), self.readout.values.cpu())
        return distribution if temperature is None else distribution.tempered(temperature)

    def read(
        self,
        prompts: Iterable[Any],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        chunk_size: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> Iterator[Reading]:
        """What `predict` and `predict_distribution` give, for so many prompts at a time, as they are read.

        Takes what `predict` takes.

        Args:
            chunk_size: the prompts that are sorted by length together; their readings come together, in order.
            first_row: the number of the first of them, for messages.

        Yields:
            A [`Reading`] of each chunk, on the CPU: `predictions` of shape (chunk,), and `distribution` over the whole
            vocabulary, None where the method gives a number alone.
        """
        for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > batch_size) if show_progress is None else show_progress
        prefix = None
        with tqdm(total=total, unit="prompt", disable=not show_progress) as progress:
            for rows in _chunks(as_rows(prompts), chunk_size):
                encoded = self._encoder.encode(rows, first_row)
                first_row += len(rows)
                order: list[int] = []
                parts: list[Reading] = []
                with self._inference():
                    prefix = self._prefix_of(encoded, before=prefix)
                    known = 0 if prefix is None else len(prefix.token_ids)
                    lengths = [len(prompt.input_ids) - known for prompt in encoded]
                    for batch in batches_by_length(lengths, batch_size, batch_tokens):
                        parts += self._read_in_parts([encoded[index] for index in batch], prefix)
                        order += batch
                        progress.update(len(batch))
                yield joined(parts, torch.tensor(order).argsort())

    @contextmanager
    def _inference(self) -> Iterator[None]:
        dtype = self._autocast
        with (
            torch.inference_mode(),
            torch.autocast(device_of(self.model.get_input_embeddings()).type, dtype=dtype, enabled=dtype is not None),
        ):
            yield

    def _prefix_of(self, prompts: Sequence[EncodedPrompt], before: PrefixCache | None) -> PrefixCache | None:
        """What all prompts begin with, where that is worth a run of its own; `before`, where that still holds."""
        token_ids = common_prefix([prompt.input_ids for prompt in prompts])
        if before is not None:
            known = len(before.token_ids)
            if tuple(token_ids[:known]) == before.token_ids and len(token_ids) < 2 * known:
                return before
        if len(prompts) == 1 or len(token_ids) < _SHORTEST_PREFIX:
            return None
        return PrefixCache(self.model, token_ids) if self.readout.can_cache_prefixes(self.model) else None

    def _read_in_parts(self, prompts: Sequence[EncodedPrompt], prefix: PrefixCache | None) -> list[Reading]:
        """The reading of a batch, in parts where the memory is not enough for the whole."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        return self._parts.run(lambda some: self._read(prompts[some], prefix), len(prompts), longest)

    def _read(self, prompts: Sequence[EncodedPrompt], prefix: PrefixCache | None) -> Reading:
        batch = self._collator([{"input_ids": p.input_ids, "grid_token_ids": p.grid_token_ids} for p in prompts])
        batch = {name: tensor.to(device_of(self.model.get_input_embeddings())) for name, tensor in batch.items()}
        return self.readout.read(self.readout.read_head(self.model, batch, prefix=prefix), self.model, batch)


def _autocast_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    dtype = getattr(torch, name, name) if isinstance(name, str) else name
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast={name!r} is not a dtype to compute in. Use 'bfloat16', 'float16' or 'float32'.")
    return None if dtype == torch.float32 else dtype


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
