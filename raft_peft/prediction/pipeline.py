"""`pipeline("text-regression")`: transformers' pipeline over a `RegressionPredictor`, registered on import."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from raft_peft.data.rows import each
from raft_peft.grid import NumberGrid
from raft_peft.methods.readout import Reading
from raft_peft.methods.saved_folder import TASK, hub_options
from raft_peft.prediction.opening import check_grid_is_known
from raft_peft.prediction.predictor import RegressionPredictor
from raft_peft.prediction.reasoning.writer import ReasoningOptions

# What `Pipeline` tells apart itself: one prompt, and several.
_TAKEN_BY_TRANSFORMERS = (str, Mapping, list, Generator, TorchDataset)

# The batches of a stream whose prompts are read ahead and sorted by length together.
_BATCHES_AHEAD = 16


@dataclass
class ModelToOpen:
    """Stands for a model in `pipeline` until the pipeline opens it, since the pipeline alone knows the grid."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: None = None

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> ModelToOpen:
        for of_transformers_alone in ("_from_pipeline", "code_revision"):
            options.pop(of_transformers_alone, None)
        # `pipeline` passes "auto" by default. The predictor's own default is the dtype of training.
        if options.get("dtype") == "auto":
            del options["dtype"]
        return cls(name, {option: value for option, value in options.items() if value is not None})


class TextRegressionPipeline(Pipeline):
    """Numbers from texts, through `transformers.pipeline`.

    ```python
    from transformers import pipeline

    from raft_peft import TextRegressionPipeline  # registers the task "text-regression"

    stars = pipeline("text-regression", model="stars-raft")
    stars("Review: It broke on day two. Stars:")  # {"prediction": 1.3}
    stars(["Review: Best purchase ever. Stars:"], top_k=2)
    # [{"prediction": 4.8, "distribution": [{"value": 5.0, "text": "5", "probability": 0.83}, ...], "mass": 0.99}]
    ```

    Prompts are texts, chats (lists of messages), or rows (dicts with `prompt`). A list or a data frame gives a list, a
    dataset or generator an iterator. Batches are made as in [`RegressionPredictor.predict`].

    Args:
        model: a folder or Hub repository through `pipeline`; or a causal language model, with `tokenizer` and `grid`.
        tokenizer: of a model that is passed itself.
        grid: the numbers, for a model that was not saved with them.
        method, decision, renormalize, separator, max_length: as in [`RegressionPredictor.from_pretrained`].
        device, batch_size: as in `Pipeline`; 64 prompts by default.
        kwargs: `top_k`, the likeliest numbers of the distribution to give beside the prediction: so many, None for
            all; none unless it is given. And `num_reasonings`, `temperature`, `max_reasoning_tokens` and `seed`, as in
            [`RegressionPredictor.predict`].

    Raises:
        ValueError: as in [`RegressionPredictor`].
    """

    # The predictor opens the tokenizer itself: that of an adapter, not of its base model.
    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
        method: str | None = None,
        decision: str | None = None,
        renormalize: bool | None = None,
        separator: str | None = None,
        max_length: int | None = None,
        device: Any = None,
        batch_size: int = 64,
        **kwargs: Any,
    ):
        asked = {"method": method, "decision": decision, "renormalize": renormalize}
        settings: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        settings |= {"separator": separator, "max_length": max_length}
        if isinstance(model, ModelToOpen):
            options = dict(model.options)
            if device is not None:
                options["device_map"] = {"": _device(device)}
            check_grid_is_known(model.name, grid, hub_options(options))
            self.predictor = RegressionPredictor.from_pretrained(model.name, grid, **settings, **options)
        elif grid is None:
            raise ValueError(
                "The model was passed as an object, so its grid is not known. Pass its numbers, such as "
                "`grid=[1, 2, 3, 4, 5]`, or the name of a saved folder instead of the model."
            )
        else:
            self.predictor = RegressionPredictor(model, tokenizer, grid, **settings)
            if device is not None:
                self.predictor.model.to(_device(device))
        placed = getattr(self.predictor.model, "hf_device_map", None) is not None
        super().__init__(
            model=self.predictor.model,
            tokenizer=self.predictor.tokenizer,
            device=None if placed else self.predictor.model.device,
            batch_size=batch_size,
            **kwargs,
        )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer to a prompt, or those to many, as [`TextRegressionPipeline`] says."""
        if isinstance(inputs, Dataset | IterableDataset):
            inputs = (row for row in each(inputs))
        elif not isinstance(inputs, _TAKEN_BY_TRANSFORMERS) and isinstance(inputs, Iterable):
            inputs = list(each(inputs))
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reasoning = {name: kwargs.pop(name) for name in sorted(ReasoningOptions.__optional_keys__ & kwargs.keys())}
        unknown = [name for name in kwargs if name != "top_k"]
        if unknown:
            raise ValueError(
                f"text-regression takes no {unknown[0]!r}. It takes grid, method, decision, top_k and num_reasonings."
            )
        return {}, reasoning, kwargs

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: Mapping[str, Any],
        forward_params: Mapping[str, Any],
        postprocess_params: Mapping[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """The answers to many prompts. The predictor makes the batches itself."""
        for reading in self.predictor.read(
            (self.preprocess(one) for one in inputs),
            batch_size,
            chunk_size=batch_size * _BATCHES_AHEAD,
            writer=self.predictor.writer(**forward_params, batch_size=batch_size),
            show_progress=False,
        ):
            yield from self._answers(reading, **postprocess_params)

    def preprocess(self, input_: Any, **_: Any) -> Any:
        # `Pipeline` wraps a list of messages in a chat of its own.
        return getattr(input_, "messages", input_)

    def _forward(self, input_tensors: Any, **reasoning: Any) -> Reading:
        writer = self.predictor.writer(**reasoning)
        (reading,) = self.predictor.read([input_tensors], writer=writer, show_progress=False)
        return reading

    def postprocess(self, model_outputs: Reading, **postprocess_parameters: Any) -> dict[str, Any]:
        (answer,) = self._answers(model_outputs, **postprocess_parameters)
        return answer

    def _answers(self, reading: Reading, top_k: int | None = 0) -> Iterator[dict[str, Any]]:
        texts = self.predictor.texts
        distribution = reading.distribution
        for row, prediction in enumerate(reading.predictions.tolist()):
            answer: dict[str, Any] = {"prediction": prediction}
            if top_k != 0:
                if distribution is None:
                    raise ValueError(
                        f"Method {self.predictor.settings.method!r} gives one number a prompt, and no distribution. "
                        "Leave out `top_k`."
                    )
                probs, order = distribution.probs[row].sort(descending=True, stable=True)
                answer["distribution"] = [
                    {"value": distribution.values[index].item(), "text": texts[index], "probability": probability}
                    for probability, index in zip(probs[:top_k].tolist(), order[:top_k].tolist(), strict=True)
                ]
                answer["mass"] = distribution.mass[row].item()
            yield answer


def _device(device: int | str | torch.device) -> str | torch.device:
    """A device as `pipeline` takes it, where a number is that of an accelerator and -1 the CPU."""
    if not isinstance(device, int):
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if device < 0 or accelerator is None else torch.device(accelerator.type, device)


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=TextRegressionPipeline, pt_model=(ModelToOpen,), type="text")
