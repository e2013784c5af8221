"""Settings that have no effect beside the others, or contradict them, are mistakes with a line."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from bitfront.errors import SpecError
from bitfront.job import load_job
from bitfront.job.consistency import DEPENDENT, inconsistencies
from bitfront.spec import JobSpec

BUNDLED: dict[str, object] = {"study": "s", "model.source": "reference", "data.source": "reference"}
ASKING: dict[str, object] = {**BUNDLED, "model.name": "digit-llava"}
CHOOSING: dict[str, object] = {**ASKING, "data.task": "choice"}
FOLDER: dict[str, object] = {**BUNDLED, "data.source": "image_folder", "data.path": "."}
SAVED: dict[str, object] = {
    **FOLDER,
    "model.source": "transformers",
    "model.name": "openai/clip",
    "data.source": "datasets",
}
CAPTIONS: dict[str, object] = {**FOLDER, "data.source": "captions"}
OWN_TASK: dict[str, object] = {**BUNDLED, "data.source": "package", "data.task": "ranks"}
CLIP: dict[str, object] = {**FOLDER, "model.source": "open_clip", "model.name": "ViT-B-32"}
ADAPTIVE = {**BUNDLED, "profile.cells": "adaptive"}
RECOVERY = "space.recovery"

# Setting: a value of it, where that has an effect, and what beside it takes the effect away.
CASES: dict[str, tuple[object, dict[str, object], dict[str, object]]] = {
    "model.weights": ("laion2b", CLIP, SAVED),
    "model.dtype": ("bfloat16", SAVED, CLIP),
    "data.path": (".", FOLDER, BUNDLED),
    "data.images": (".", CAPTIONS, FOLDER),
    **{
        f"data.splits.{name}": (".", FOLDER, BUNDLED)
        for name in ("calibration", "tuning", "selection", "test")
    },
    "data.image_column": ("img", SAVED, FOLDER),
    "data.label_column": ("fine", SAVED, FOLDER),
    "data.question_column": ("asked", SAVED, FOLDER),
    "data.answer_column": ("said", SAVED, FOLDER),
    "data.caption_column": (
        "title",
        {**FOLDER, "data.source": "table", "data.task": "retrieval"},
        {**FOLDER, "data.source": "table", "data.task": "classification"},
    ),
    "data.templates": (["{}"], FOLDER, ASKING),
    "data.horizontal_flip": (True, FOLDER, ASKING),
    "data.classes": (["a", "b"], FOLDER, BUNDLED),
    "data.prompt": ("<image> {}?", ASKING, FOLDER),
    "data.option_format": (" {option}", {**CHOOSING, "data.measure": "letter"}, CHOOSING),
    "data.answer_pattern": ("yes|no", ASKING, {**ASKING, "data.task": "agreement"}),
    "data.answer_tokens": (3, ASKING, CHOOSING),
    "data.background": ("black", FOLDER, BUNDLED),
    "data.skip_unreadable": (True, FOLDER, BUNDLED),
    "quantizer.zero_points": ("whole", BUNDLED, {**BUNDLED, "quantizer.scheme": "symmetric"}),
    "quantizer.target": ("output", BUNDLED, {**BUNDLED, "quantizer.rounding": "nearest"}),
    "quantizer.ranges": ("searched", BUNDLED, {**BUNDLED, "quantizer.activations": "dynamic"}),
    "quantizer.activation_group": (
        128,
        {**BUNDLED, "quantizer.activations": "grouped"},
        BUNDLED,
    ),
    "space.clips": ([1.0, 0.9], BUNDLED, {**BUNDLED, "quantizer.activations": "dynamic"}),
    **{
        f"{RECOVERY}.{name}": (
            value,
            BUNDLED,
            {**BUNDLED, f"{RECOVERY}.distil": {}, f"{RECOVERY}.context_length": [0]}
            | {f"{RECOVERY}.reduction": [0]},
        )
        for name, value in {
            "distillation": [1.0],
            "shots": [4],
            "steps": [9],
            "learning_rate_multiplier": [0.5],
        }.items()
    },
    "space.recovery.class_position": (
        ["front"],
        BUNDLED,
        {**BUNDLED, f"{RECOVERY}.context_length": [0]},
    ),
    "space.recovery.class_specific": ([True], BUNDLED, ASKING),
    "space.recovery.teacher": (
        ["prompt"],
        BUNDLED,
        {**BUNDLED, f"{RECOVERY}.distillation": [0.0]},
    ),
    "space.recovery.views": ([2], BUNDLED, ASKING),
    "space.recovery.adapter_bits": ([4], BUNDLED, {**BUNDLED, f"{RECOVERY}.reduction": [0]}),
    "space.recovery.blend": ([0.3], BUNDLED, {**BUNDLED, f"{RECOVERY}.reduction": [0]}),
    **{
        f"space.kv_cache.{name}": (
            value,
            {**ASKING, "space.kv_cache.bits": [4]},
            {**ASKING, "space.kv_cache.bits": [16]},
        )
        for name, value in {"levels": ["kmeans"], "outliers": [0.1], "rotary": ["after"]}.items()
    },
    "context_tokens": (100, {**ASKING, "constraints.max_kv_nbytes": "1kB"}, ASKING),
    "partition.depth": (2, BUNDLED, {**BUNDLED, "partition.granularity": "layer"}),
    "partition.threshold": (
        0.1,
        BUNDLED,
        {**BUNDLED, "partition.granularity": "transformer_block"},
    ),
    "profile.score": ("fisher", ADAPTIVE, BUNDLED),
    "profile.max_passes": (9, ADAPTIVE, BUNDLED),
    "profile.slack": (2.0, BUNDLED, ADAPTIVE),
    "profile.clip_search": ("sequential", {**BUNDLED, "space.clips": [1.0, 0.9]}, BUNDLED),
    "profile.vision.output_weight": (
        0.1,
        {**ASKING, "profile.vision.epochs": 1},
        {**ASKING, "profile.vision.error_weight": 0},
    ),
    "search.correct_cells": (True, BUNDLED, {**BUNDLED, "search.allocator": "pairwise"}),
    "search.epsilon": (0.3, BUNDLED, {**BUNDLED, "search.prune": False}),
    "search.early_stop": (False, {**BUNDLED, f"{RECOVERY}.steps": [9]}, BUNDLED),
    "search.history": (200, BUNDLED, {**BUNDLED, "search.sampler": "random"}),
}

# What always has an effect, or one that the model decides.
INDEPENDENT = {
    *("study", "objectives", "target", "model.source", "model.name", "model.device", "data.source"),
    *(f"data.samples.{split}" for split in ("calibration", "tuning", "selection", "test")),
    *("data.seed", "data.batch_size", "data.task", "data.measure"),
    *(f"quantizer.{name}" for name in ("scheme", "scale_search", "rounding", "activations")),
    *(f"space.{name}" for name in ("weight_bits", "activation_bits", "groups", "formats", "keep")),
    *(f"space.recovery.{name}" for name in ("context_length", "reduction")),
    *(f"space.recovery.distil.{name}" for name in ("steps", "share", "codes")),
    "space.recovery.distil.learning_rate_multiplier",
    *("partition.granularity", "profile.measure", "profile.cells"),
    *(f"profile.vision.{name}" for name in ("weight_bits", "activation_bits", "samples", "epochs")),
    *(f"profile.vision.{name}" for name in ("batch_size", "rate", "entropy_share", "error_weight")),
    *(f"constraints.max_{name}" for name in ("nbytes", "error", "bits", "bit_operations")),
    *(
        f"constraints.max_{name}"
        for name in ("latency_s", "token_s", "activation_nbytes", "kv_nbytes")
    ),
    *(f"constraints.max_{name}" for name in ("memory_nbytes", "divergence")),
    "space.kv_cache.bits",
    *(f"search.{name}" for name in ("sampler", "seed", "workers", "gpus_per_worker", "prune")),
    *(f"search.{name}" for name in ("budgets", "from_bits", "to_bits", "min_correlation")),
    *(f"search.{name}" for name in ("max_attempts", "checkpoint_s", "warm_start")),
    *(
        "search.allocator",
        "search.race",
        "search.refine",
        "stop.trials",
        "stop.time_s",
        "stop.patience",
        "tracking.mlflow",
        "resources.memory",
    ),
}


def nested(settings: dict[str, object]) -> dict[str, object]:
    content: dict[str, object] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        here = content
        for section in sections:
            here = here.setdefault(section, {})  # type: ignore[assignment]  # a section
        here[key] = value
    return content


def told(settings: dict[str, object]) -> dict[str, str]:
    found = inconsistencies(JobSpec.model_validate(nested(settings)))
    return {".".join(map(str, place)): text for place, text in found}


def leaves(schema: type[BaseModel], start: str = "") -> set[str]:
    found = set()
    for name, entry in schema.model_fields.items():
        kinds = [entry.annotation, *getattr(entry.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        found |= leaves(inner[0], f"{start}{name}.") if inner else {f"{start}{name}"}
    return found


def test_every_setting_is_known_to_depend_on_others_or_not_to() -> None:
    assert leaves(JobSpec) == INDEPENDENT | set(DEPENDENT)
    assert not INDEPENDENT & set(DEPENDENT)
    assert set(CASES) == set(DEPENDENT)


@pytest.mark.parametrize("name", CASES)
def test_a_setting_without_effect_is_named(name: str) -> None:
    value, effective, idle = CASES[name]

    assert told({**effective, name: value}) == {}
    found = told({**idle, name: value})
    assert list(found) == [name]
    assert found[name].startswith(f"{name} has no effect: ")


def test_a_target_is_for_retrieval_too() -> None:
    for target in ("torch", "onnxruntime"):
        assert told({**CAPTIONS, "target": target}) == {}
    assert "gguf takes LLaVA of a CLIP" in told({**CAPTIONS, "target": "gguf"})["target"]


def test_a_job_that_spells_out_every_default_is_right() -> None:
    spec = JobSpec.model_validate(nested(BUNDLED))

    assert inconsistencies(JobSpec.model_validate(spec.model_dump(mode="json"))) == []


@pytest.mark.parametrize(
    ("settings", "place", "sentence"),
    [
        ({**BUNDLED, "model.name": "digit"}, "model.name", "there is no bundled model 'digit'"),
        ({**BUNDLED, "model.device": "gpu"}, "model.device", "'gpu' is not possible: write auto"),
        (
            {**BUNDLED, "space.kv_cache.bits": [4]},
            "space.kv_cache",
            "since others keep no keys and values of earlier tokens: leave it out",
        ),
        (
            {**BUNDLED, "objectives": ["error", "memory_nbytes"]},
            "objectives",
            "memory_nbytes is of a model that answers questions: leave it out, or put nbytes in",
        ),
        (
            {**ASKING, "constraints.max_memory_nbytes": "24GB"},
            "context_tokens",
            "memory_nbytes is of a sequence of some length: write how many tokens it has, such as",
        ),
        (
            {**ASKING, "space.kv_cache.bits": [4, 8]},
            "space.kv_cache",
            "nothing counts the cache's bytes, so the widest would always be the best: name",
        ),
        (
            {**ASKING, "space.kv_cache.bits": [4], "profile.measure": "fisher"},
            "profile.measure",
            "fisher looks at layers, and space.kv_cache rounds what they give: write output_kl",
        ),
        (
            {**ASKING, "space.kv_cache.bits": [4], "space.recovery.distil": {}},
            "space.recovery.distil",
            "plans that round the KV cache are not distilled",
        ),
        (
            {**ASKING, "space.kv_cache.bits": [4], "target": "onnxruntime"},
            "space.kv_cache",
            "what is built for onnxruntime keeps keys and values as its runtime does",
        ),
        ({**CLIP, "data.source": "questions"}, "data.source", "but the model tells classes apart"),
        ({**FOLDER, "model.name": "digit-llava"}, "data.source", "but the model answers questions"),
        (
            {**BUNDLED, "data.task": "answering"},
            "data.task",
            "not for answering: write classification or retrieval or agreement, or leave it out",
        ),
        (
            {**FOLDER, "model.name": "digit-llava", "data.task": "answering"},
            "data.task",
            "are not for answering: name other data or another model",
        ),
        (
            {**CHOOSING, "data.measure": "exact_match"},
            "data.measure",
            "exact_match is not for choice: write likelihood or letter, or leave it out",
        ),
        (
            {**CAPTIONS, "model.name": "digit-llava"},
            "data.source",
            "captions has captions, but the model answers questions",
        ),
        (
            {**CLIP, "data.source": "images"},
            "data.classes",
            "images without labels are told apart by what they may show: give a list of it",
        ),
        (
            {**CAPTIONS, "data.measure": "accuracy"},
            "data.measure",
            "accuracy is not for retrieval: write recall_at_1 or recall_at_5 or recall_at_10",
        ),
        (
            {**BUNDLED, "data.task": "retrieval", "space.recovery.steps": [5]},
            "space.recovery",
            "on classes or on answers, and retrieval has neither: write recovery: {distil: {}}",
        ),
        (
            {**OWN_TASK, "target": "onnxruntime"},
            "target",
            "models for ranks are not built yet: leave it out",
        ),
        (
            {**BUNDLED, "data.measure": "exact_match"},
            "data.measure",
            "exact_match is not for classification: write accuracy or mean_per_class_accuracy",
        ),
        (
            {**BUNDLED, "model.device": "cpu", "search.gpus_per_worker": 1},
            "search.gpus_per_worker",
            "workers take 1 GPUs each, but model.device: cpu uses none",
        ),
        (
            {**ADAPTIVE, "search.allocator": "pairwise"},
            "search.allocator",
            "profile.cells: adaptive leaves estimates: leave one of them out",
        ),
        (
            {**BUNDLED, "search.allocator": "pairwise", "profile.measure": "fisher"},
            "search.allocator",
            "profile.measure: fisher does not see: set output_kl or loss_delta or gauss_newton",
        ),
        (
            {**BUNDLED, "profile.vision.epochs": 1},
            "profile.vision",
            "a model that answers questions",
        ),
        (
            {**ASKING, "profile.vision.epochs": 1, "quantizer.activations": "dynamic"},
            "profile.vision",
            "learns static ranges, but quantizer.activations is dynamic",
        ),
        (
            {**ASKING, "profile.vision.activation_bits": 16},
            "profile.vision.activation_bits",
            "inputs of 16 bits have no range to learn",
        ),
        (
            {**BUNDLED, "space.weight_bits": [4, 8], "search.to_bits": 3},
            "search.to_bits",
            "no plan has 3 bits a weight or fewer, since the least of space.weight_bits is 4",
        ),
        (
            {**BUNDLED, "space.weight_bits": [4], "search.from_bits": 6},
            "search.from_bits",
            "no plan has 6 bits a weight or more, since the most of space.weight_bits is 4",
        ),
        (
            {**BUNDLED, "space.formats": ["nvfp4"], "search.to_bits": 3},
            "search.to_bits",
            "no plan has 3 bits a weight or fewer, since the least of space.formats is 4",
        ),
        (
            {**BUNDLED, "space.formats": ["nvfp4"], "space.recovery.distil.steps": [5]},
            "space.recovery.distil",
            "it trains zero points of integers, and the space has formats: leave it out",
        ),
        (
            {**BUNDLED, "space.formats": ["int4", "mxfp4"], "target": "onnxruntime"},
            "space.formats",
            "onnxruntime has no kernel for mxfp4a8: the nearest that it has is",
        ),
        (
            {**BUNDLED, "space.weight_bits": [4], "constraints.max_bits": 3.5},
            "constraints.max_bits",
            "no plan has 3.5 bits a weight or fewer",
        ),
    ],
)
def test_settings_of_which_only_one_can_be_meant_are_named(
    settings: dict[str, object], place: str, sentence: str
) -> None:
    found = told(settings)

    assert place in found
    assert sentence in found[place]


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    content = nested({**CLIP, "model.dtype": "bfloat16", "data.path": "nowhere"})
    job.write_text(yaml.safe_dump(content, sort_keys=False) + "search: {seed: -1, epsilon: x}\n")

    with pytest.raises(SpecError) as caught:
        load_job(job, {"stop.trials": 0})

    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        "on the command line",
        *(f"{job}, line {line}" for line in (5, 8, 9, 9)),
    ]


def test_a_job_of_which_nothing_is_right_is_told_at_length_but_not_without_end(
    tmp_path: Path,
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("\n".join(f"key{number}: 1" for number in range(90)))

    with pytest.raises(SpecError) as caught:
        load_job(job)

    lines = str(caught.value).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 43 more mistakes"
