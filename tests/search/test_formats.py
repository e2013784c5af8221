"""A space of number formats: what layers may take, and the baselines that are measured first."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.in_process import profile
from bitfront.choices import layer_precisions
from bitfront.errors import SpecError
from bitfront.formats import FORMATS
from bitfront.job import load_job
from bitfront.layers import Layer, LayerKind, Tower
from bitfront.plan import Distillation, Plan
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, Precision, weight_precision
from bitfront.spec import JobSpec, QuantizerSpec, SpaceSpec
from search.seeds import uniform_plans
from service.study.proxy_search import ProxySearch

NAMED = ("int4-g128", "nvfp4", "fp8", "nf4-g16", "float16")


def layer(columns: int, kind: LayerKind = LayerKind.LINEAR) -> Layer:
    return Layer("fc", Tower.VISION, kind, 8, columns, 1, "fc", "vision")


def texts(space: SpaceSpec, columns: int = 256) -> list[str]:
    return list(map(str, layer_precisions(layer(columns), space, QuantizerSpec())))


def test_a_layer_may_take_each_format_with_each_width_of_inputs() -> None:
    space = SpaceSpec(formats=NAMED, activation_bits=(8, 16))

    found = texts(space)

    assert found == [
        *("w4a8g128", "nvfp4a8", "nf4a8g16", "w4a16g128", "nvfp4a16", "nf4a16g16"),
        *("fp8_e4m3a8", "fp8_e4m3a16", "w16a8", "w16a16"),
    ]


def test_a_group_of_a_whole_row_is_none_and_a_block_stays() -> None:
    space = SpaceSpec(formats=("int4-g32", "mxfp4", "nf4"), activation_bits=(16,))

    assert texts(space, columns=32) == ["w4a16", "mxfp4a16", "nf4a16"]


def test_the_short_form_means_what_it_did() -> None:
    short = SpaceSpec(weight_bits=(4, 2), groups=(0, 32), activation_bits=(8,))
    long = SpaceSpec(formats=("int2", "int2-g32", "int4", "int4-g32"), activation_bits=(8,))

    assert texts(short) == texts(long)


def test_every_format_has_its_uniform_plans() -> None:
    space = SpaceSpec(formats=NAMED, activation_bits=(8, 16))

    plans = uniform_plans([layer(256)], space, QuantizerSpec())

    assert {str(plan.precision("fc")) for plan in plans} == set(texts(space))


@given(
    stored=st.sampled_from([*FORMATS, *(f"w{bits}" for bits in WEIGHT_BITS)]),
    inputs=st.sampled_from(ACTIVATION_BITS),
    group=st.sampled_from([0, 16, 128]),
    clip=st.sampled_from([1.0, 0.99]),
)
def test_the_short_form_of_a_precision_reads_back_equal(
    stored: str, inputs: int, group: int, clip: float
) -> None:
    form = FORMATS.get(stored)
    bits = int(stored[1:]) if form is None else form.bits
    columns = form.block if form is not None and form.block else group
    precision = Precision(bits, inputs, columns, clip, "" if form is None else form.name)

    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("formats: [int7]", "weight bits must be one of"),
        ("formats: [fp9]", "'fp9' is not a weight format: write int2 to int8, followed by -g128"),
        ("formats: [nvfp4-g32]", "nvfp4 has no groups to choose: leave -g32"),
        ("formats: [fp8, fp8_e4m3]", "space.formats names a value twice"),
        ("formats: [nvfp4], groups: [32]", "stands in the place of space.groups"),
        ("formats: [nvfp4], weight_bits: [4]", "stands in the place of space.weight_bits"),
    ],
)
def test_what_is_no_format_is_refused_in_a_sentence(
    settings: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "study: s\nmodel: {source: reference}\ndata: {source: reference}\n"
        f"space: {{{settings}}}\n"
    )

    with pytest.raises(SpecError, match=said):
        load_job(path)


def test_a_plan_with_number_formats_is_not_distilled() -> None:
    plan = Plan.uniform(["fc"], weight_precision("nvfp4"))

    with pytest.raises(SpecError, match="weight formats other than integers are not distilled"):
        replace(plan, distil=Distillation())


def test_a_format_is_stored_under_its_full_name() -> None:
    assert SpaceSpec(formats=("fp8", "mxfp8", "nf4-g64")).formats == (
        "fp8_e4m3",
        "mxfp8_e4m3",
        "nf4",
    )


def test_plans_of_the_program_take_each_layer_in_the_format_that_suits_it() -> None:
    spec = JobSpec.model_validate(
        {
            "study": "formats",
            "model": {"source": "reference", "device": "cpu"},
            "data": {
                "source": "reference",
                "samples": {"calibration": 16, "tuning": 4, "selection": 16, "test": 4},
            },
            "quantizer": {"rounding": "nearest"},
            "partition": {"granularity": "layer"},
            "space": {"formats": ["int2", "nvfp4", "mxfp4", "fp8"], "activation_bits": [16]},
            "search": {"budgets": 4},
        }
    )

    measured, _ = profile(spec)
    seeds = ProxySearch(spec, measured).program_seeds()

    used = {precision.format for seed in seeds for _, precision in seed.configuration.plan}
    assert {"", "nvfp4", "fp8_e4m3"} <= used
    names = [known.name for known in measured.layers]
    cell = weight_precision("nvfp4")
    assert all(seed.configuration.plan.precision(name) for seed in seeds for name in names)
    assert any(seed.configuration.plan.precision(name) == cell for seed in seeds for name in names)
