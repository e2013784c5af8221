"""Seeds: the configurations that are measured before the sampler is asked."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bitfront.choices import fitted, kept_width
from bitfront.layers import Layer
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import FULL, Precision
from bitfront.spec import QuantizerSpec, SpaceSpec


def full_baseline(layers: Sequence[Layer], space: SpaceSpec) -> Configuration:
    """Full precision, but for the layers that `keep` fixes below 16 bits."""
    widths = {layer.name: kept_width(layer, space) for layer in layers}
    return Configuration(
        Plan.of(
            {
                name: FULL if width is None else Precision(width, FULL.activation_bits)
                for name, width in widths.items()
            }
        )
    )


def uniform_plans(
    layers: Sequence[Layer], space: SpaceSpec, quantizer: QuantizerSpec
) -> list[Plan]:
    """A plan for each pair of weights and activation bits: the same for every layer but the kept.

    These are the baselines that a person has without a search. The first group and the
    widest clip of the space are used, and `keep` holds: nothing that breaks it is measured.
    """
    plans = [
        Plan.of(
            {
                layer.name: uniform_precision(
                    layer, replace(weight, activation_bits=activation_bits), space, quantizer
                )
                for layer in layers
            }
        )
        for weight in space.uniform_weights
        for activation_bits in sorted(space.activation_bits)
    ]
    return list(dict.fromkeys(plans))


def uniform_precision(
    layer: Layer, wanted: Precision, space: SpaceSpec, quantizer: QuantizerSpec
) -> Precision:
    """What one layer gets in a uniform plan; an embedding has no input to quantize.

    A layer that `keep` names has its own width.
    """
    kept = kept_width(layer, space)
    weight = wanted if kept is None else space.of_width(kept)[0]
    inputs = wanted.activation_bits if quantizer.rounds(layer.kind) else 16
    clip = 1.0 if inputs == 16 else max(space.clips)
    return fitted(replace(weight, activation_bits=inputs, clip=clip), layer)


def with_recoveries(plans: Iterable[Plan], recoveries: Sequence[Recovery]) -> list[Configuration]:
    """Every plan with every recovery."""
    return [Configuration(plan, recovery) for plan in plans for recovery in recoveries]
