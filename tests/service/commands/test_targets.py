"""`bitfront targets`: what a configuration can be built for, and what is installed here."""

import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitfront.artefact import compressed_tensors
from bitfront.artefact.gguf import limits as gguf_limits
from bitfront.errors import InvalidModel
from bitfront.job.consistency import inconsistencies
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.targets import TARGETS, DeploymentTarget, Ranges, Scheme, Target
from bitfront.trial import Origin, Trial
from service.cli import main
from service.views.targets import installed_text
from storage.store import open_store
from tests.support.store_samples import complete, job


def test_the_table_says_what_each_runtime_has_kernels_for() -> None:
    shown = CliRunner().invoke(main, ["targets"])

    assert shown.exit_code == 0, shown.stderr
    for target in TARGETS:
        assert f"--to {target.artefact} " in shown.stdout
        assert target.rest in shown.stdout
        for form in target.formats:
            assert form.kernel in shown.stdout
    assert f"torch {version('torch')}" in shown.stdout


def test_a_program_reads_the_same_as_json() -> None:
    shown = CliRunner().invoke(main, ["targets", "--format", "json"])

    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["target"] for row in rows] == [target.name.value for target in TARGETS]
    blocks = rows[1]["kernels"][0]
    assert blocks["held_bits"]["symmetric"]["3"] == 4
    assert blocks["held_bits"]["asymmetric"]["3"] == 8


def test_what_is_not_installed_comes_with_the_way_to_install_it() -> None:
    said = installed_text("no-such-runtime", "onnxruntime")

    assert said == "no-such-runtime is not installed: pip install 'bitfront[onnxruntime]'"


def test_the_best_configuration_says_what_it_can_be_built_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bitfront.db'}"
    plan = Plan.of({"a": Precision(4, 8), "b": Precision(4, 8, 32)})
    with open_store(url) as store:
        store.create_study(job("clip"), {})
        lease = store.acquire("clip", "driver", 60)
        found = Trial("clip", 0, Configuration(plan), Origin.BASELINE, {})
        store.start_trial(lease, found)
        assert complete(store, lease, 0, {"error": 0.1, "nbytes": 9.0})

    text = CliRunner().invoke(main, ["best", "clip", "--db", url])
    row = CliRunner().invoke(main, ["best", "clip", "--format", "json", "--db", url])

    said = (
        "torch (--to packed), onnxruntime (--to onnx; no kernel for 1 of 2 layers), openvino (--to "
        "openvino; no kernel for 1 of 2 layers)"
    )
    assert said in text.stdout, text.stderr
    assert json.loads(row.stdout)["targets"] == {"torch": 0, "onnxruntime": 1, "openvino": 1}


def test_a_model_that_a_target_does_not_take_is_refused_in_a_sentence() -> None:
    spec = job("own", model={"source": "transformers", "name": "openai/clip-vit-base-patch32"})
    wanted = spec.model_copy(update={"target": DeploymentTarget.GGUF})

    (place, said), *_ = inconsistencies(wanted)

    assert place == ("target",)
    assert said.startswith("target: gguf takes LLaVA of a CLIP and a Llama, the bundled one too")
    assert inconsistencies(spec.model_copy(update={"target": DeploymentTarget.ONNXRUNTIME})) == []
    asks = job("asks", model={"source": "reference", "name": "digit-llava"})
    assert inconsistencies(asks.model_copy(update={"target": DeploymentTarget.ONNXRUNTIME})) == []


@pytest.mark.parametrize("figure", ["latency_s", "token_s"])
def test_times_of_a_model_that_answers_need_a_target_that_is_timed(figure: str) -> None:
    answers = {"source": "reference", "name": "digit-llava"}
    minimised = job("asks", model=answers, objectives=["error", figure])
    limited = job("asks", model=answers, constraints={f"max_{figure}": 1.0})

    for spec, name in ((minimised, "objectives"), (limited, f"constraints.max_{figure}")):
        ((place, said),) = inconsistencies(spec)

        assert ".".join(map(str, place)) == name
        assert said == (
            f"{name}: {figure} of a model that answers questions is measured in what it is built "
            "for: set target: onnxruntime or openvino, or put bit_operations in place of "
            f"{figure}"
        )
        timed = spec.model_copy(update={"target": DeploymentTarget.ONNXRUNTIME})
        assert inconsistencies(timed) == []


def test_the_time_of_a_token_is_not_for_a_model_that_tells_classes_apart() -> None:
    spec = job("tells", model={"source": "reference"}, objectives=["error", "token_s"])

    ((place, said),) = inconsistencies(spec)

    assert place == ("objectives",)
    assert said.startswith("objectives: token_s is of a model that answers questions: leave it out")


def test_what_a_checkpoint_cannot_hold_is_refused_with_the_job() -> None:
    spec = job(
        "asks",
        model={"source": "reference", "name": "digit-llava"},
        space={"activation_bits": [8], "recovery": {"context_length": [4]}},
    )
    wanted = spec.model_copy(update={"target": DeploymentTarget.COMPRESSED_TENSORS})

    said = dict(inconsistencies(wanted))

    assert said["quantizer", "scheme"].startswith(
        "quantizer.scheme: compressed-tensors holds no asymmetric weights: write symmetric"
    )
    assert "no place for a prompt and an adapter" in said["space", "recovery"]
    assert said["space", "activation_bits"].endswith(
        "w2a16 or w2a16g16, or write quantizer.activations: dynamic_symmetric, or leave target out"
    )
    for bits, ranges in ((16, "static"), (8, "dynamic_symmetric")):
        fitting = job(
            "asks",
            model=spec.model.model_dump(),
            quantizer={"rounding": "nearest", "scheme": "symmetric", "activations": ranges},
            space={"activation_bits": [bits]},
        )
        aimed = fitting.model_copy(update={"target": DeploymentTarget.COMPRESSED_TENSORS})
        assert inconsistencies(aimed) == []


@pytest.mark.parametrize(
    ("bits", "group", "said"),
    [
        (4, 40, "gguf has no kernel for w4a16g40: the nearest that it has is w4a16g32 or w4a16"),
        (4, 24, "gguf has no kernel for w4a16g24: the nearest that it has is w4a16g32 or w4a16"),
        (2, 64, "gguf has no kernel for w2a16g64: the nearest that it has is w2a16g256 or w2a16"),
        (3, 256, None),
        (4, 64, None),
    ],
)
def test_what_llama_cpp_has_no_block_for_is_refused_with_the_job(
    bits: int, group: int, said: str | None
) -> None:
    spec = job(
        "asks",
        model={"source": "reference", "name": "digit-llava"},
        quantizer={"rounding": "nearest", "scheme": "symmetric"},
        space={"activation_bits": [16], "weight_bits": [bits], "groups": [group]},
    )

    found = dict(inconsistencies(spec.model_copy(update={"target": DeploymentTarget.GGUF})))

    wanted = {} if said is None else {("space", "groups"): said}
    assert {place: text.partition(", or leave")[0] for place, text in found.items()} == {
        place: f"space.groups: {text}" for place, text in wanted.items()
    }


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.artefact)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("text", ["w4a16", "w4a8", "w16a16"])
@pytest.mark.parametrize("ranges", ["static", "dynamic_symmetric"])
@pytest.mark.parametrize("recovery", [False, True])
def test_the_table_says_what_a_checkpoint_refuses_to_hold(
    target: Target, scheme: Scheme, text: str, ranges: Ranges, *, recovery: bool
) -> None:
    """Against what writes the formats that do refuse something."""
    refusals: dict[DeploymentTarget, Callable[..., None]] = {
        DeploymentTarget.COMPRESSED_TENSORS: partial(
            compressed_tensors.refuse_other_formats, ranges=ranges
        ),
        DeploymentTarget.GGUF: gguf_limits.refuse_other_formats,
    }
    plan = {"a": Precision.parse(text)}

    held = target.holds(plan.values(), scheme, ranges, recovery=recovery)

    if target.name not in refusals:
        assert held
        return
    refuse = refusals[target.name]
    if held:
        refuse(plan, symmetric=scheme == "symmetric", recovery=recovery)
    else:
        with pytest.raises(InvalidModel):
            refuse(plan, symmetric=scheme == "symmetric", recovery=recovery)
