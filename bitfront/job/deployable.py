"""What a job's target has no kernel for: each place in the job, and the nearest thing it has."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

from bitfront.job.document import Place
from bitfront.layers import LayerKind
from bitfront.objective import BY_NAME, TIMES, Objective
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.targets import SMALLEST_INPUT_GROUP, TARGETS, Ranges, Target, target_named


def undeployable(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """What falls outside of the job's target: one sentence for each setting, with the way out."""
    target = target_named(spec.target)
    if target is None:
        return
    if spec.tasks and not any(task.is_built for task in spec.tasks):
        yield (
            ("target",),
            f"target: models for {spec.tasks[0].name} are not built yet: leave it out",
        )
    elif not target.takes(answers=spec.asks):
        yield (
            ("target",),
            f"target: {target.name} takes {target.models}, and this is another model: leave it out",
        )
    if not target.is_timed:
        timed = " and ".join(one.name for one in TARGETS if one.is_timed)
        for figure in filter(spec.needs, TIMES):
            where = place_of(spec, figure)
            yield (
                where,
                f"{name_of(where)}: {figure} is measured in {timed}, and what is built for "
                f"{target.name} multiplies in floating point at every precision: put "
                f"bit_operations in place of {figure}",
            )
    scheme = spec.quantizer.scheme
    weights = (*spec.space.weights, *spec.space.kept_weights)
    has_integers = any(one.quantizes_weight and not one.format for one in weights)
    if scheme not in target.schemes and has_integers:
        yield (
            ("quantizer", "scheme"),
            f"quantizer.scheme: {target.name} holds no {scheme} weights: write "
            f"{' or '.join(sorted(target.schemes))}, or leave target out",
        )
    if spec.space.p4q is not None and not target.recovers:
        yield (
            ("space", "recovery"),
            f"space.recovery: {target.name} has no place for a prompt and an adapter: leave it "
            "out, or leave target out",
        )
    told = set()
    for precision in _searched(spec):
        if not _multiplies(target, precision, spec, spec.quantizer.activations):
            place, nearest = _way_out(spec, target, precision)
            if place not in told:
                told.add(place)
                yield place, f"{name_of(place)}: {nearest}, or leave target out"


def name_of(place: Place) -> str:
    """A place as a sentence names it."""
    return ".".join(map(str, place))


def place_of(spec: JobSpec, figure: Objective) -> Place:
    """Where a job asks for a figure: among the objectives, or in its limit."""
    if figure in spec.objectives:
        return ("objectives",)
    return ("constraints", BY_NAME[figure].limit)


def _searched(spec: JobSpec) -> Iterator[Precision]:
    """Every precision that a linear layer may take, as `search.options` has them."""
    space = spec.space
    weights = (*space.weights, *space.kept_weights)
    for weight, inputs in product(weights, space.activation_bits):
        yield replace(weight, activation_bits=inputs)


def _way_out(spec: JobSpec, target: Target, precision: Precision) -> tuple[Place, str]:
    """The setting to change, and what to change it to."""
    quantizer = spec.quantizer
    near = target.nearest(precision, quantizer.activations, quantizer.activation_group)
    names = " or ".join(map(str, near))
    ranges = quantizer.activations
    others = [o for o in get_args(Ranges) if _multiplies(target, precision, spec, o)]
    usual = target.native(LayerKind.LINEAR, precision, ranges)
    if usual is not None:  # with the smallest groups of inputs
        return (
            ("quantizer", "activation_group"),
            f"{target.name} has no kernel for {precision} beside inputs in groups of "
            f"{quantizer.activation_group}: write {SMALLEST_INPUT_GROUP}, or search {names}",
        )
    if others and ranges != "static":
        return (
            ("quantizer", "activations"),
            f"{target.name} has no kernel for {precision} with {ranges} ranges of inputs: write "
            f"{' or '.join(others)}, or search {names}",
        )
    is_named = precision.format or (spec.space.formats and precision.quantizes_weight)
    if is_named or all(one.weight_bits != precision.weight_bits for one in near):
        return ("space", spec.space.width_setting), _nearest_text(target, precision, names, others)
    same_inputs = [one for one in near if one.activation_bits == precision.activation_bits]
    place = ("space", "groups" if same_inputs else "activation_bits")
    return place, _nearest_text(target, precision, names, others)


def _multiplies(target: Target, precision: Precision, spec: JobSpec, ranges: Ranges) -> bool:
    group = spec.quantizer.activation_group
    return target.native(LayerKind.LINEAR, precision, ranges, group) is not None


def _nearest_text(
    target: Target, precision: Precision, names: str, others: Sequence[Ranges]
) -> str:
    further = f", or write quantizer.activations: {' or '.join(others)}" if others else ""
    return (
        f"{target.name} has no kernel for {precision}: the nearest that it has is {names}{further}"
    )
