from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from bitfront.errors import SpecError
from bitfront.identity import keys
from bitfront.identity.decisions import DECISIONS, Decision, Key, Part
from bitfront.identity.identities import Identities
from bitfront.layers import Block, Tower
from bitfront.objective import FIGURES
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec

BLOCK = Block("b", Tower.VISION, ("x", "y"))
OPTION = Option((Precision(4, 8, clip=0.99), Precision(2, 8)))
CONFIGURATION = Configuration(Plan.from_options([(BLOCK, OPTION)]), Recovery(views=2))
RANGES = {"x": {1.0: (-1.0, 2.0)}}

# A job in which every field may count: with learned bounds, clips, a recovery and its views, and
# a rounding method with a target.
CONTENT: dict[str, Any] = {
    "study": "digits",
    "model": {"source": "reference"},
    "data": {"source": "reference"},
    "quantizer": {"rounding": "descent"},
    "space": {"clips": [1.0, 0.99], "recovery": {"views": [2]}},
    "profile": {"vision": {}},
}

# Another value of each field that enters keys by itself.
OTHERS: dict[str, object] = {
    "data.measure": "mean_per_class_accuracy",
    "data.horizontal_flip": True,
    "data.seed": 1,
    "data.batch_size": 8,
    "quantizer.scheme": "symmetric",
    "quantizer.scale_search": False,
    "quantizer.activations": "dynamic",
    "quantizer.activation_group": 128,
    "quantizer.zero_points": "whole",
    "quantizer.rounding": "gptq",
    "quantizer.target": "output",
    "quantizer.ranges": "searched",
    "space.clips": [1.0, 0.98],
    "profile.measure": "gradient",
    "profile.clip_search": "sequential",
    "profile.vision": None,
    "profile.vision.weight_bits": 8,
    "profile.vision.activation_bits": 8,
    "profile.vision.samples": 65,
    "profile.vision.epochs": 11,
    "profile.vision.batch_size": 9,
    "profile.vision.rate": 0.5,
    "profile.vision.entropy_share": 1.0,
    "profile.vision.error_weight": 2.0,
    "profile.vision.output_weight": 2.0,
    "objectives": ["error", "bit_operations"],
    "context_tokens": 8000,
    **{f"constraints.{figure.limit}": 1 for figure in FIGURES if figure.on_demand},
    "search.seed": 1,
    "target": "gguf",
}


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a specification by its path; a section that may be left out is one too."""
    for name, field in section.model_fields.items():
        nested = list(sections(field.annotation))
        if not nested or nested != [field.annotation]:
            yield f"{prefix}{name}"
        for inner in nested:
            yield from fields(inner, f"{prefix}{name}.")


def sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


def changed(path: str, value: object) -> JobSpec:
    content = JobSpec.model_validate(CONTENT).model_dump(mode="json")
    *outer, last = path.split(".")
    section = content
    for name in outer:
        section = section[name]
    section[last] = value
    return JobSpec.model_validate(content)


def found(spec: JobSpec, *, device: str = "cpu", **identities: str) -> dict[Key, str]:
    """Every key of a job whose model and data are known by fixed identities."""
    known = {"model": "m", "calibration": "c", "tuning": "t", "selection": "s", "test": "e"}
    known |= identities
    ids = Identities(quantizer=keys.quantizer_identity(spec, device, {"x": 1}), **known)
    content: dict[Key, str] = {
        Key.CELL: keys.cell_key(spec, ids, BLOCK, OPTION).digest,
        Key.CLIPS: keys.clips_key(spec, ids, [(BLOCK, OPTION)], Plan(())),
        Key.EVALUATION: keys.evaluation_key(spec, ids, device, CONFIGURATION),
        Key.FEATURES: keys.features_key(
            spec, model=ids.model, samples="k", device_type=device, bounds={}, ranges=RANGES
        ),
    }
    vision = spec.profile.vision
    if vision is not None:
        content[Key.BOUNDS] = keys.bounds_key(spec, ids)
        content[Key.VISION_CHECKPOINT] = keys.vision_checkpoint_key(
            model=ids.model,
            samples=ids.calibration,
            batches=[[0]],
            ranges=RANGES,
            quantizer=spec.quantizer,
            vision=vision,
            seed=spec.search.seed,
        )
    return content


def differing(spec: JobSpec, **changes: str) -> set[Key]:
    before, after = found(JobSpec.model_validate(CONTENT)), found(spec, **changes)
    return {key for key in after if after[key] != before[key]}


def test_every_field_of_the_specification_has_a_decision() -> None:
    names = list(fields(JobSpec))

    assert sorted(names) == sorted(DECISIONS)


@pytest.mark.parametrize("path", [path for path, known in DECISIONS.items() if known.keys])
def test_a_field_enters_exactly_the_keys_that_its_decision_names(path: str) -> None:
    assert differing(changed(path, OTHERS[path])) == DECISIONS[path].keys


def test_only_fields_that_enter_a_key_are_tried() -> None:
    assert OTHERS.keys() == {path for path, known in DECISIONS.items() if known.keys}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"model": "another"}, set(Key)),
        ({"calibration": "another"}, set(Key) - {Key.FEATURES}),
        ({"tuning": "another"}, {Key.EVALUATION}),
        ({"selection": "another"}, {Key.EVALUATION}),
        ({"device": "cuda"}, {Key.CELL, Key.CLIPS, Key.EVALUATION, Key.FEATURES}),
    ],
    ids=["model", "calibration", "tuning", "selection", "device"],
)
def test_keys_follow_the_identities_of_model_splits_and_device(
    part: dict[str, str], expected: set[Key]
) -> None:
    assert differing(JobSpec.model_validate(CONTENT), **part) == expected


@pytest.mark.parametrize(
    "make",
    [
        Decision,
        lambda: Decision(frozenset({Key.CELL}), reason="none"),
        lambda: Decision(through=frozenset({Part.MODEL}), reason="none"),
    ],
)
def test_a_field_has_either_a_key_or_a_reason(make: Callable[[], Decision]) -> None:
    with pytest.raises(SpecError, match="either enters a key"):
        make()
