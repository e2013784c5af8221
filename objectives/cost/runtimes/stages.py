"""Stages of what a model does for a sample: which layers each multiplies, and how often."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitfront.layers import LayerKind, Tower
from bitfront.objective import Objective
from bitfront.vlm import DualEncoder, GenerativeModel
from objectives.cost.runtimes.runtime import Runtime, Timed


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of what a model does for a sample that has a time of its own.

    Attributes:
        figure: What the time is called.
        batch_size: Samples at once.
        positions: How often the weight of each layer is multiplied for one sample; what is not
            named costs nothing.
        adapter_positions: The same of a recovery's adapter.
        whole: The stage in full precision, from end to end.
    """

    figure: Objective
    batch_size: int
    positions: Mapping[str, int]
    adapter_positions: int
    whole: Timed


def image_stage(model: DualEncoder, runtime: Runtime, batch_size: int) -> Stage:
    """The features of images: the vision tower, without embeddings, which multiply nothing."""
    positions = {
        layer.name: layer.positions
        for layer in model.layers
        if layer.tower is Tower.VISION and layer.kind is not LayerKind.EMBEDDING
    }
    figure = Objective.LATENCY_S
    return Stage(figure, batch_size, positions, 1, runtime.whole(figure))


def prompt_stage(model: GenerativeModel, runtime: Runtime, batch_size: int) -> Stage:
    """Reading prompts with their pictures; the head gives the logits of every position."""
    length = prompt_length(model)
    positions = {
        layer.name: length if layer.tower is Tower.LANGUAGE else layer.positions
        for layer in model.layers
        if model.multiplying(layer.name)
    }
    figure = Objective.LATENCY_S
    return Stage(figure, batch_size, positions, model.tile_tokens, runtime.whole(figure))


def token_stage(model: GenerativeModel, runtime: Runtime) -> Stage:
    """Writing one further token of one answer: every layer of the decoder once."""
    positions = {
        layer.name: 1
        for layer in model.layers
        if layer.tower is Tower.LANGUAGE and model.multiplying(layer.name)
    }
    figure = Objective.TOKEN_S
    return Stage(figure, 1, positions, 0, runtime.whole(figure))


def prompt_length(model: GenerativeModel) -> int:
    """The decoder's positions of the sample that the model's layers were traced on."""
    return max(layer.positions for layer in model.layers if layer.tower is Tower.LANGUAGE)
