"""`RegressionPredictor`: from a saved folder, or a base model and a grid, to numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from peft import AutoPeftModelForCausalLM
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from raft_peft import decisions
from raft_peft.adapter import RAFT_CONFIG_NAME, RaftConfig
from raft_peft.collate import RegressionCollator
from raft_peft.distribution import GridDistribution
from raft_peft.final_position import check_final_logits, final_position_outputs
from raft_peft.grid import NumberGrid
from raft_peft.prompts import EncodedPrompt, PromptEncoder

ADAPTER_CONFIG_NAME = "adapter_config.json"
# Prompts are sorted by length among this many batches: long enough to save padding, short enough for any memory.
_BATCHES_SORTED_TOGETHER = 64


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
        renormalize: whether probabilities are divided by their sum over the grid.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid,
        *,
        separator: str | None = None,
        max_length: int | None = None,
        renormalize: bool = False,
    ):
        check_final_logits(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.grid = NumberGrid(grid)
        self.renormalize = renormalize
        self._encoder = PromptEncoder(tokenizer, self.grid, separator=separator, max_length=max_length)
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
        renormalize: bool | None = None,
        **model_kwargs: Any,
    ) -> RegressionPredictor:
        """Load what `trainer.save_model` wrote, or a base model for zero-shot prediction.

        Args:
            folder_or_model: a folder or Hub repository, with a `raft_config.json` or with `grid`.
            grid: the numbers, for a model without `raft_config.json`; or another grid than the saved one.
            dtype: of the weights. By default as in training; for zero-shot, as the model was saved.
            quantization_config: such as a `BitsAndBytesConfig`.
            device_map: by default all on the GPU where there is one, else on the CPU.
            separator, max_length, renormalize: instead of the saved settings.
            model_kwargs: passed on to the model's `from_pretrained`, such as `attn_implementation`, `revision` or
                `token`.

        Raises:
            ValueError: no `raft_config.json` and no grid; a `raft_config.json` that does not fit the tokenizer.
        """
        name = str(folder_or_model)
        hub: dict[str, Any] = {
            key: model_kwargs[key]
            for key in ("revision", "token", "cache_dir", "local_files_only")
            if key in model_kwargs
        }
        config_path = _find_file(name, RAFT_CONFIG_NAME, hub)
        saved = RaftConfig.load(config_path) if config_path is not None and grid is None else None
        if saved is not None:
            grid = saved.grid
        if grid is None:
            raise ValueError(
                f"{name!r} has no {RAFT_CONFIG_NAME}, so its grid is not known. Pass grid=, such as "
                "grid=[1, 2, 3, 4, 5], or a folder that RegressionAwareTrainer.save_model wrote."
            )
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=model_kwargs.get("trust_remote_code", False), **hub
        )
        if saved is not None:
            saved.check_tokens(tokenizer)
            dtype = saved.dtype if dtype is None else dtype
            separator = saved.separator if separator is None else separator
            max_length = saved.max_length if max_length is None else max_length
            renormalize = saved.renormalize if renormalize is None else renormalize
        if dtype is not None:
            model_kwargs["dtype"] = dtype
        if quantization_config is not None:
            model_kwargs["quantization_config"] = quantization_config
        if device_map is None and torch.accelerator.is_available():
            device_map = {"": torch.accelerator.current_accelerator()}
        if device_map is not None:
            model_kwargs["device_map"] = device_map
        is_adapter = _find_file(name, ADAPTER_CONFIG_NAME, hub) is not None
        auto_model = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
        model = auto_model.from_pretrained(name, **model_kwargs)
        return cls(
            model,
            tokenizer,
            NumberGrid(grid),
            separator=separator,
            max_length=max_length,
            renormalize=bool(renormalize),
        )

    def predict(
        self, prompts: Iterable[Any], batch_size: int = 16, *, show_progress: bool | None = None
    ) -> np.ndarray:
        """Predict one number for each prompt.

        Args:
            prompts: texts, chats (lists of messages), or rows (dicts with `prompt`, and for a chat optionally
                `tools` and `chat_template_kwargs`). Any iterable; it is read as it is needed, so its length does not
                matter.
            batch_size: prompts in a forward pass.
            show_progress: whether to show a progress bar; by default where there is more than one batch.

        Returns:
            The numbers in the unit of the labels, float32, of shape (prompts,), in the order of the prompts.
        """
        distribution = self.predict_distribution(prompts, batch_size, show_progress=show_progress)
        return decisions.mean(distribution, renormalize=self.renormalize).numpy()

    def predict_distribution(
        self, prompts: Iterable[Any], batch_size: int = 16, *, show_progress: bool | None = None
    ) -> GridDistribution:
        """The whole distribution over the grid for each prompt: probabilities, mass on and off the grid, entropy.

        Takes what `predict` takes. The result is on the CPU, over the whole vocabulary, not renormalised.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more.")
        rows = _rows(prompts)
        total = len(prompts) if isinstance(prompts, Sized) else None
        show_progress = (total is None or total > batch_size) if show_progress is None else show_progress
        log_probs: list[torch.Tensor] = []
        with tqdm(total=total, unit="prompt", disable=not show_progress) as progress:
            for window in _chunks(rows, batch_size * _BATCHES_SORTED_TOGETHER):
                encoded = self._encoder.encode(window, first_row=sum(map(len, log_probs)))
                scored = torch.empty(len(encoded), len(self.grid))
                by_length = sorted(range(len(encoded)), key=lambda index: -len(encoded[index].input_ids))
                for batch in _chunks(by_length, batch_size):
                    scored[batch] = self._score([encoded[index] for index in batch])
                    progress.update(len(batch))
                log_probs.append(scored)
        values = torch.tensor(self.grid.values)
        return GridDistribution(torch.cat(log_probs) if log_probs else torch.empty(0, len(values)), values)

    @torch.inference_mode()
    def _score(self, prompts: Sequence[EncodedPrompt]) -> torch.Tensor:
        batch = self._collator([vars(prompt) for prompt in prompts])
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        logits, _ = final_position_outputs(self.model, batch["input_ids"], batch["attention_mask"])
        token_ids = batch["grid_token_ids"].to(logits.device)
        return GridDistribution.from_logits(logits, token_ids, self.grid.values).log_probs.cpu()


def _rows(prompts: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    if isinstance(prompts, str | Mapping):
        raise ValueError("`prompts` must be a list of prompts. For one prompt, pass a list of one: [prompt].")
    for prompt in prompts:
        if isinstance(prompt, Mapping) and "role" in prompt:
            raise ValueError("`prompts` must be a list of chats. For one chat, pass a list of one: [messages].")
        yield prompt if isinstance(prompt, Mapping) else {"prompt": prompt}


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _find_file(name: str, filename: str, hub: Mapping[str, Any]) -> str | None:
    """The path of a file of a folder or Hub repository, or None where it has none."""
    if Path(name).is_dir():
        path = Path(name) / filename
        return str(path) if path.is_file() else None
    try:
        return cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
