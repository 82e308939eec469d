"""The memory of any depth and batch size, from steps simulated at two of each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from raft_peft.planning.settings import StepSettings
from raft_peft.planning.simulation import Held, Skeleton, base_skeleton

_Sizes = TypeVar("_Sizes", Held, "StepMemory")


@dataclass(frozen=True)
class StepMemory:
    """What a step takes at its peak beside what is held all along, in bytes.

    Attributes:
        activations: all that is neither of the others.
        gradients: of the adapter.
        logits: of the final positions, at the most that they ever take.
    """

    activations: int
    gradients: int
    logits: int


class Estimator:
    """Estimates the memory of training steps of one model; what was simulated once is kept.

    Layers are alike but for a pattern that repeats itself (`layer_types`), so that memory is a line in their number:
    two shallow models give it. Rows are alike too, so that at every moment of a step memory is a line in the batch
    size, and the peak is the highest of these lines. Where a model's layers are not alike, it is simulated whole.

    Args:
        config: of a decoder in transformers.
    """

    def __init__(self, config: Any):
        self._config = config
        self._layers = config.get_text_config().num_hidden_layers
        self._depths: tuple[int, ...] | None = None
        self._skeletons: dict[tuple[int, StepSettings], Skeleton] = {}
        self._moments: dict[tuple[int, StepSettings, int], np.ndarray] = {}

    def held(self, settings: StepSettings) -> Held:
        """What is in memory all along."""
        return self._at_full_depth(lambda depth: self._skeleton(depth, settings).held(), settings)

    def step(self, settings: StepSettings) -> StepMemory:
        """What a step takes beside that, at its peak."""
        return self._at_full_depth(lambda depth: self._step(depth, settings), settings)

    def _at_full_depth(self, of_depth: Callable[[int], _Sizes], settings: StepSettings) -> _Sizes:
        if self._depths is None:
            self._depths = self._choose_depths(settings)
        first = of_depth(self._depths[0])
        if len(self._depths) == 1:
            return first
        second = of_depth(self._depths[1])
        steps = (self._layers - self._depths[0]) // (self._depths[1] - self._depths[0])
        sizes = {
            field.name: getattr(first, field.name) + steps * (getattr(second, field.name) - getattr(first, field.name))
            for field in dataclasses.fields(first)
        }
        return type(first)(**sizes)

    def _choose_depths(self, settings: StepSettings) -> tuple[int, ...]:
        """Two numbers of layers to simulate, or all of them where that is few or the layers are not alike."""
        pattern = repeated_part(getattr(self._config.get_text_config(), "layer_types", None) or [])
        shallow = max(2, pattern) + (self._layers - max(2, pattern)) % pattern
        deeper = shallow + pattern
        if deeper >= self._layers:
            return (self._layers,)
        counts = [
            base_skeleton(with_layers(self._config, depth), settings).num_parameters()
            for depth in (shallow, deeper, self._layers)
        ]
        alike = counts[2] - counts[0] == (self._layers - shallow) // pattern * (counts[1] - counts[0])
        return (shallow, deeper) if alike else (self._layers,)

    def _skeleton(self, depth: int, settings: StepSettings) -> Skeleton:
        settings = _of_every_batch(settings)
        if (depth, settings) not in self._skeletons:
            self._skeletons[depth, settings] = Skeleton(with_layers(self._config, depth), settings)
        return self._skeletons[depth, settings]

    def _step(self, depth: int, settings: StepSettings) -> StepMemory:
        skeleton, batch_size = self._skeleton(depth, settings), settings.batch_size
        moments = self._simulated(depth, settings, batch_size) if batch_size == 1 else self._line(depth, settings)
        gradients = moments[:, 1]
        if settings.accumulation > 1:  # those of the forward passes before are there from the beginning
            gradients = np.full(len(moments), skeleton.held().adapter)
        totals = moments[:, 0] - moments[:, 1] + gradients
        peak = totals.argmax()
        at_peak, of_gradients = round(totals[peak]), round(gradients[peak])
        logits = min(round(moments[:, 2].max()), at_peak - of_gradients)
        return StepMemory(at_peak - of_gradients - logits, of_gradients, logits)

    def _line(self, depth: int, settings: StepSettings) -> np.ndarray:
        two, three = self._simulated(depth, settings, 2), self._simulated(depth, settings, 3)
        if two.shape != three.shape:  # a batch of three goes another way
            return self._simulated(depth, settings, settings.batch_size)
        return two + (settings.batch_size - 2) * (three - two)

    def _simulated(self, depth: int, settings: StepSettings, batch_size: int) -> np.ndarray:
        key = depth, _of_every_batch(settings), batch_size
        if key not in self._moments:
            self._moments[key] = self._skeleton(depth, settings).step(batch_size, padded=batch_size > 1)
        return self._moments[key]


def _of_every_batch(settings: StepSettings) -> StepSettings:
    return dataclasses.replace(settings, batch_size=1, accumulation=1)


def repeated_part(pattern: Sequence[str]) -> int:
    """How many layers there are before their types repeat themselves; 1 where they are all of one type.

    >>> repeated_part(["window", "window", "full", "window", "window", "full", "window"])
    3
    """
    for length in range(1, len(pattern)):
        if all(one == pattern[index % length] for index, one in enumerate(pattern)):
            return length
    return max(len(pattern), 1)


def with_layers(config: Any, layers: int) -> Any:
    """The config of the same model cut to its first layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:  # one for each layer
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config
