"""Settings of a job that have no effect beside the others, or that contradict them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, cast

from pydantic import BaseModel

from bitfront.choices import cache_forms
from bitfront.errors import SpecError
from bitfront.installed_tasks import installed_task
from bitfront.job.deployable import name_of, place_of, undeployable
from bitfront.job.document import Place
from bitfront.kv_cache import Kept
from bitfront.objective import CACHE_SIZES, TIMES, Objective
from bitfront.spec import (
    REFERENCE_CLIP,
    REFERENCE_LLAVA,
    AllocatorKind,
    CellSelection,
    DataSource,
    ErrorMeasure,
    Granularity,
    JobSpec,
    KvCacheSpace,
    ModelSource,
    RecoverySpace,
    Rounding,
    Sampler,
    SplitPaths,
    VisionSpec,
)
from bitfront.targets import DeploymentTarget
from bitfront.tasks import (
    CHOICE,
    CLASS_AGREEMENT,
    CLASSIFICATION,
    RETRIEVAL,
    TEXT_AGREEMENT,
    TaskMeasure,
    fitting_tasks,
)

_UNQUANTIZED: Final = 16
_MEASURES_OF_PAIRS: Final = (
    ErrorMeasure.OUTPUT_KL,
    ErrorMeasure.LOSS_DELTA,
    ErrorMeasure.GAUSS_NEWTON,
)
_OF_OUTPUTS: Final = (ErrorMeasure.OUTPUT_KL, ErrorMeasure.LOSS_DELTA)
_MEASURES_ALL: Final = "every cell is measured: leave it out, or set profile.cells: adaptive"
_DEVICE: Final = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")


@dataclass(frozen=True, slots=True)
class _Dependent:
    """A setting that has an effect only beside others.

    Attributes:
        has_effect: Whether it has one in a job.
        reason: Why it has none otherwise, and what would give it one.
    """

    has_effect: Callable[[JobSpec], bool]
    reason: str


def inconsistencies(spec: JobSpec) -> list[tuple[Place, str]]:
    """What does not go together in a job: each place, and a sentence that starts with its name.

    A setting at its default counts as not given, so that a job which spells out all of them
    means the same as one that gives none.
    """
    contradictions = list(_contradictions(spec))
    known = {place for place, _ in contradictions}
    return contradictions + [
        (place, f"{name} has no effect: {dependent.reason}")
        for name, dependent in DEPENDENT.items()
        if (place := tuple(name.split("."))) not in known
        and _is_set(spec, place)
        and not dependent.has_effect(spec)
    ]


def _is_set(spec: JobSpec, place: Place) -> bool:
    """Whether a setting is there and is not the default."""
    section: BaseModel | None = spec
    for part in place[:-1]:
        section = cast("BaseModel | None", getattr(section, str(part)))
        if section is None:
            return False
    name = str(place[-1])
    assert section is not None
    value: object = getattr(section, name)
    return bool(value != type(section).model_fields[name].default)


def _has_pairs(spec: JobSpec) -> bool:
    """Whether neighbouring blocks are measured together."""
    return spec.search.allocator is AllocatorKind.PAIRWISE


def _is_adaptive(spec: JobSpec) -> bool:
    """Whether only the cells are measured that the program uses."""
    return spec.profile.cells is CellSelection.ADAPTIVE


def _may_ask(spec: JobSpec) -> bool:
    return not spec.compares


def _may_write(spec: JobSpec) -> bool:
    by_likelihood = CHOICE.measure(spec.data.measure) is TaskMeasure.LIKELIHOOD
    return _may_ask(spec) and not (spec.task is CHOICE and by_likelihood)


def _may_classify(spec: JobSpec) -> bool:
    return spec.may_be(CLASSIFICATION) or spec.may_be(CLASS_AGREEMENT)


def _recovery(spec: JobSpec) -> RecoverySpace:
    assert spec.space.recovery is not None
    return spec.space.recovery


def _cache(spec: JobSpec) -> KvCacheSpace:
    assert spec.space.kv_cache is not None
    return spec.space.kv_cache


def _vision(spec: JobSpec) -> VisionSpec:
    assert spec.profile.vision is not None
    return spec.profile.vision


def _has_static_ranges(spec: JobSpec) -> bool:
    return spec.quantizer.activations == "static" and min(spec.space.activation_bits) < _UNQUANTIZED


_OF_TEXTS = (
    "it is for models that write answers, and here none is written: leave it out, or for options "
    "set data.measure: letter"
)
_OF_CLASSES = "it is for models that tell classes apart, and this one does not: leave it out"
_OF_QUESTIONS = "it is for models that answer questions, and this one does not: leave it out"
_OF_PICTURES = "the bundled samples have no files: leave it out, or name data of your own"

DEPENDENT: Final = {
    "model.weights": _Dependent(
        lambda job: job.model.source is ModelSource.OPEN_CLIP,
        "the model of this source has its own weights: leave it out, and name them in model.name",
    ),
    "model.dtype": _Dependent(
        lambda job: job.model.source is ModelSource.TRANSFORMERS and not job.compares,
        "only a LLaVA of transformers is loaded in it: leave it out",
    ),
    "data.path": _Dependent(
        lambda job: job.data.source is not DataSource.REFERENCE,
        "the bundled samples have no path: leave it out, or name its source in data.source",
    ),
    "data.images": _Dependent(
        lambda job: job.data.source.is_file,
        "only files of questions or captions name images of a folder: leave it out",
    ),
    **{
        f"data.splits.{name}": _Dependent(
            lambda job: job.data.source is not DataSource.REFERENCE,
            "the bundled samples have splits of their own: leave it out",
        )
        for name in SplitPaths.model_fields
    },
    "data.image_column": _Dependent(
        lambda job: job.data.source in (DataSource.DATASETS, DataSource.TABLE),
        "only data of source datasets or table have a column of images: leave it out",
    ),
    "data.label_column": _Dependent(
        lambda job: (
            (job.data.source is DataSource.DATASETS and not job.asks)
            or (job.data.source is DataSource.TABLE and job.may_be(CLASSIFICATION))
        ),
        "only data of source datasets or table have a column of labels, for a model that tells "
        "classes apart: leave it out",
    ),
    "data.question_column": _Dependent(
        lambda job: job.data.source is DataSource.DATASETS and not job.compares,
        "only data of source datasets have a column of questions, for a model that answers them: "
        "leave it out",
    ),
    "data.answer_column": _Dependent(
        lambda job: job.data.source is DataSource.DATASETS and not job.compares,
        "only data of source datasets have a column of answers, for a model that gives some: "
        "leave it out",
    ),
    "data.caption_column": _Dependent(
        lambda job: job.data.source is DataSource.TABLE and job.may_be(RETRIEVAL),
        "only data of source table with task: retrieval have a column of captions: leave it out",
    ),
    "data.templates": _Dependent(_may_classify, _OF_CLASSES),
    "data.horizontal_flip": _Dependent(_may_classify, _OF_CLASSES),
    "data.classes": _Dependent(
        lambda job: _may_classify(job) and job.data.source is not DataSource.REFERENCE,
        "only the classes of an image folder or a dataset can be named: leave it out",
    ),
    "data.prompt": _Dependent(_may_ask, _OF_QUESTIONS),
    "data.option_format": _Dependent(
        lambda job: job.may_be(CHOICE) and job.data.measure is TaskMeasure.LETTER,
        "only task: choice with measure: letter lists options: leave it out",
    ),
    "data.answer_pattern": _Dependent(
        lambda job: _may_write(job) and job.task is not TEXT_AGREEMENT, _OF_TEXTS
    ),
    "data.answer_tokens": _Dependent(_may_write, _OF_TEXTS),
    "data.background": _Dependent(
        lambda job: job.data.source is not DataSource.REFERENCE, _OF_PICTURES
    ),
    "data.skip_unreadable": _Dependent(
        lambda job: job.data.source is not DataSource.REFERENCE, _OF_PICTURES
    ),
    "quantizer.zero_points": _Dependent(
        lambda job: job.quantizer.scheme == "asymmetric",
        "symmetric weights have no zero points: leave it out, or set quantizer.scheme: asymmetric",
    ),
    "quantizer.target": _Dependent(
        lambda job: job.quantizer.rounding is not Rounding.NEAREST,
        "quantizer.rounding: nearest fits the codes to nothing but the weights: leave it out, or "
        "choose another rounding",
    ),
    "quantizer.ranges": _Dependent(
        _has_static_ranges,
        "inputs have no static range that could be searched: leave it out, or set "
        "quantizer.activations: static and activation_bits below 16",
    ),
    "quantizer.activation_group": _Dependent(
        lambda job: job.quantizer.activations == "grouped",
        "inputs are not rounded in groups: leave it out, or set quantizer.activations: grouped",
    ),
    "space.clips": _Dependent(
        _has_static_ranges,
        "inputs have no static range that could be cut: leave it out, or set "
        "quantizer.activations: static and activation_bits below 16",
    ),
    "space.recovery.class_position": _Dependent(
        lambda job: not job.asks and any(_recovery(job).context_length),
        "a class has a place in a learned prompt only, of a model that tells classes apart: leave "
        "it out, or put a context_length above 0 beside it",
    ),
    "space.recovery.class_specific": _Dependent(
        lambda job: not job.asks and any(_recovery(job).context_length),
        "a class has a learned prompt of its own only where there is one, in a model that tells "
        "classes apart: leave it out, or put a context_length above 0 beside it",
    ),
    "space.recovery.teacher": _Dependent(
        lambda job: not job.asks and any(_recovery(job).distillation),
        "without distillation, or with a model that answers questions, no teacher reads texts: "
        "leave it out, or put a distillation above 0 beside it",
    ),
    "space.recovery.views": _Dependent(_may_classify, _OF_CLASSES),
    **{
        f"space.recovery.{name}": _Dependent(
            lambda job: job.space.p4q is not None,
            "there is neither a prompt nor an adapter to train: leave it out, or put a "
            "context_length or a reduction above 0 beside it",
        )
        for name in ("distillation", "shots", "steps", "learning_rate_multiplier")
    },
    "space.recovery.adapter_bits": _Dependent(
        lambda job: any(_recovery(job).reduction),
        "no recovery has an adapter: leave it out, or add a reduction above 0",
    ),
    "space.recovery.blend": _Dependent(
        lambda job: any(_recovery(job).reduction),
        "no recovery has an adapter: leave it out, or add a reduction above 0",
    ),
    **{
        f"space.kv_cache.{name}": _Dependent(
            lambda job: min(_cache(job).bits) < _UNQUANTIZED,
            "a cache of 16 bits has no codes: leave it out, or add fewer space.kv_cache.bits",
        )
        for name in ("levels", "outliers", "rotary")
    },
    "context_tokens": _Dependent(
        lambda job: job.counts_cache or job.space.kv_cache is not None,
        "nothing counts the bytes of a KV cache: leave it out, or name kv_nbytes or memory_nbytes "
        "among the objectives or in a limit",
    ),
    "partition.depth": _Dependent(
        lambda job: job.partition.granularity is not Granularity.LAYER,
        "each layer is a block of its own: leave it out, or choose another partition.granularity",
    ),
    "partition.threshold": _Dependent(
        lambda job: job.partition.granularity is Granularity.ENTROPY,
        "only partition.granularity: entropy has one: leave it out",
    ),
    "profile.score": _Dependent(_is_adaptive, _MEASURES_ALL),
    "profile.max_passes": _Dependent(_is_adaptive, _MEASURES_ALL),
    "profile.slack": _Dependent(
        lambda job: not _is_adaptive(job),
        "profile.cells: adaptive scores every joint option: leave it out",
    ),
    "profile.clip_search": _Dependent(
        lambda job: len(job.space.clips) > 1 and _has_static_ranges(job),
        "there is nothing to choose between: leave it out, or list several space.clips, with "
        "static ranges of quantized inputs",
    ),
    "profile.vision.output_weight": _Dependent(
        lambda job: _vision(job).error_weight > 0,
        "it weighs a part of what error_weight: 0 leaves out: leave it out too",
    ),
    "search.correct_cells": _Dependent(
        lambda job: not _has_pairs(job),
        "search.allocator: pairwise measures what blocks do together, which is what plans would "
        "correct: leave one of them out",
    ),
    "search.epsilon": _Dependent(
        lambda job: job.search.prune, "search.prune: false prunes nothing: leave one of them out"
    ),
    "search.early_stop": _Dependent(
        lambda job: job.space.recovery is not None,
        "no trial trains anything: leave it out, or add space.recovery",
    ),
    "search.history": _Dependent(
        lambda job: job.search.sampler is not Sampler.RANDOM,
        "the sampler random learns from no trial: leave it out",
    ),
}
"""Every setting that has an effect only beside others. A test finds those that are missing."""


def _contradictions(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """Settings of which at most one can be meant."""
    model, search = spec.model, spec.search
    bundled = (REFERENCE_CLIP, REFERENCE_LLAVA)
    if model.source is ModelSource.REFERENCE and model.name not in bundled:
        yield (
            ("model", "name"),
            f"model.name: there is no bundled model {model.name!r}: write {' or '.join(bundled)}, "
            "or name its library in model.source",
        )
    if not _DEVICE.fullmatch(model.device):
        yield (
            ("model", "device"),
            f"model.device: {model.device!r} is not possible: write auto, cpu, cuda or cuda:0",
        )
    yield from _of_another_task(spec)
    yield from _of_another_kind(spec)
    if (
        isinstance(search.gpus_per_worker, float)
        and search.gpus_per_worker
        and model.device == "cpu"
    ):
        yield (
            ("search", "gpus_per_worker"),
            f"search.gpus_per_worker: workers take {search.gpus_per_worker:g} GPUs each, but "
            "model.device: cpu uses none: leave one of them out",
        )
    yield from _impossible_pairs(spec)
    if spec.space.formats and spec.space.distil is not None:
        yield (
            ("space", "recovery", "distil"),
            "space.recovery.distil: it trains zero points of integers, and the space has formats: "
            "leave it out, or search weight_bits and groups",
        )
    yield from _of_the_cache(spec)
    yield from _impossible_widths(spec)
    yield from undeployable(spec)


def _impossible_pairs(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """Pairs of blocks where errors are estimates, or a sum over layers whatever is beside them."""
    if not _has_pairs(spec):
        return
    if _is_adaptive(spec):
        yield (
            ("search", "allocator"),
            "search.allocator: pairwise compares what was measured, and profile.cells: adaptive "
            "leaves estimates: leave one of them out",
        )
    if spec.profile.measure not in _MEASURES_OF_PAIRS:
        yield (
            ("search", "allocator"),
            "search.allocator: pairwise asks what two blocks do together, which profile.measure: "
            f"{spec.profile.measure} does not see: set {' or '.join(_MEASURES_OF_PAIRS)}",
        )


def _of_another_task(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """A task that is not for the data and the model, and a measure that is not for the task."""
    data, tasks = spec.data, spec.tasks
    if data.task is not None and not tasks:
        known = fitting_tasks(data.source, asks=spec.model.asks)
        names = " or ".join(task.name for task in known)
        way = f"write {names}, or leave it out" if known else "name other data or another model"
        if data.source is DataSource.PACKAGE:
            way = "name one that an installed package brings, or other data"
        yield (
            ("data", "task"),
            f"data.task: data of source {data.source} and this model are not for {data.task}: "
            f"{way}",
        )
    if data.measure is not None and tasks:
        measures = dict.fromkeys(measure for task in tasks for measure in task.measures)
        if data.measure not in measures:
            named = " or ".join(task.name for task in tasks)
            yield (
                ("data", "measure"),
                f"data.measure: {data.measure} is not for {named}: "
                + (
                    f"write {' or '.join(measures)}, or leave it out"
                    if measures
                    else "leave it out"
                ),
            )
    if data.source is DataSource.PACKAGE and tasks:
        try:
            installed_task(tasks[0].name)
        except SpecError as error:
            yield ("data", "task"), str(error)
    if tasks == (CLASS_AGREEMENT,) and data.source is DataSource.IMAGES and data.classes is None:
        yield (
            ("data", "classes"),
            "data.classes: images without labels are told apart by what they may show: give a list "
            "of it, or a file with one",
        )
    if spec.space.p4q is not None and tasks and not any(task.recovers for task in tasks):
        yield (
            ("space", "recovery"),
            f"space.recovery: {tasks[0].without_recovery}: write recovery: {{distil: {{}}}}, "
            "or leave it out",
        )


def _of_another_kind(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """What is for the other kind of model than the job's."""
    source = ("data", "source")
    if spec.asks and spec.compares and spec.data.task is None:
        if spec.data.source is DataSource.QUESTIONS:
            text = "asks questions, but the model tells classes apart: use image_folder or datasets"
        elif spec.data.source is DataSource.CAPTIONS:
            text = "has captions, but the model answers questions: use questions or datasets"
        else:
            text = "has classes, but the model answers questions: use questions or datasets"
        yield source, f"data.source: {spec.data.source} {text}"
    if spec.profile.vision is not None:
        place = ("profile", "vision")
        if spec.compares:
            yield (
                place,
                "profile.vision needs a model that answers questions, since it trains on the "
                "language model's loss: leave it out",
            )
        elif spec.quantizer.activations != "static":
            yield (
                place,
                "profile.vision learns static ranges, but quantizer.activations is "
                f"{spec.quantizer.activations}: leave one of them out",
            )
        elif spec.profile.vision.activation_bits == _UNQUANTIZED:
            yield (
                (*place, "activation_bits"),
                "profile.vision.activation_bits: inputs of 16 bits have no range to learn: write "
                "4, 6 or 8, or leave profile.vision out",
            )
    if spec.compares and spec.needs(Objective.TOKEN_S):
        where = place_of(spec, Objective.TOKEN_S)
        yield (
            where,
            f"{name_of(where)}: token_s is of a model that answers questions: leave it out, or put "
            "latency_s in its place",
        )
    if spec.asks and spec.target is DeploymentTarget.ANY:
        for figure in filter(spec.needs, TIMES):
            where = place_of(spec, figure)
            yield (
                where,
                f"{name_of(where)}: {figure} of a model that answers questions is measured in "
                "what it is built for: set target: onnxruntime or openvino, or put bit_operations "
                f"in place of {figure}",
            )


def _of_the_cache(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """A KV cache of a model without one, one of no length, and one that nothing is to choose."""
    place, cache = ("space", "kv_cache"), spec.space.kv_cache
    if spec.compares:
        if cache is not None:
            yield (
                place,
                "space.kv_cache is for models that answer questions, since others keep no keys and "
                "values of earlier tokens: leave it out",
            )
        for figure in filter(spec.needs, CACHE_SIZES):
            where = place_of(spec, figure)
            yield (
                where,
                f"{name_of(where)}: {figure} is of a model that answers questions: leave it out, "
                "or put nbytes in its place",
            )
        return
    if spec.counts_cache and spec.context_tokens is None:
        figure = next(filter(spec.needs, CACHE_SIZES))
        yield (
            ("context_tokens",),
            f"context_tokens: {figure} is of a sequence of some length: write how many tokens it "
            "has, such as context_tokens: 8000",
        )
    if cache is None:
        return
    if len(cache_forms(spec.space)) > len(Kept) and not spec.counts_cache:
        yield (
            place,
            "space.kv_cache: nothing counts the cache's bytes, so the widest would always be the "
            "best: name memory_nbytes or kv_nbytes among the objectives or in a limit, with "
            "context_tokens",
        )
    if spec.profile.measure not in _OF_OUTPUTS:
        yield (
            ("profile", "measure"),
            f"profile.measure: {spec.profile.measure} looks at layers, and space.kv_cache rounds "
            f"what they give: write {' or '.join(_OF_OUTPUTS)}",
        )
    if spec.space.distil is not None:
        yield (
            ("space", "recovery", "distil"),
            "space.recovery.distil: plans that round the KV cache are not distilled: leave it or "
            "space.kv_cache out",
        )
    if spec.target is not DeploymentTarget.ANY:
        yield (
            place,
            f"space.kv_cache: what is built for {spec.target} keeps keys and values as its runtime "
            "does: leave it out, or leave target out",
        )


def _impossible_widths(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """Bounds of the mean width that no choice of widths can hold."""
    search, most = spec.search, spec.constraints.max_bits
    searched, setting = spec.space.widths, f"space.{spec.space.width_setting}"
    narrowest = min((*searched, *spec.space.keep.values()))
    if search.to_bits is not None and search.to_bits < min(searched):
        yield (
            ("search", "to_bits"),
            f"search.to_bits: no plan has {search.to_bits:g} bits a weight or fewer, since the "
            f"least of {setting} is {min(searched)}",
        )
    if search.from_bits is not None and search.from_bits > max(searched):
        yield (
            ("search", "from_bits"),
            f"search.from_bits: no plan has {search.from_bits:g} bits a weight or more, since the "
            f"most of {setting} is {max(searched)}",
        )
    if most is not None and most < narrowest:
        yield (
            ("constraints", "max_bits"),
            f"constraints.max_bits: no plan has {most:g} bits a weight or fewer, since the least "
            f"of {setting} and space.keep is {narrowest}",
        )
