from collections.abc import Mapping
from dataclasses import replace

import pytest

from bitfront.errors import SpecError
from bitfront.identity import keys
from bitfront.identity.identities import CellKey, Identities
from bitfront.layers import Block, Tower
from bitfront.plan import Configuration, Option, Plan, Recovery
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from tests.support.store_samples import job

IDS = Identities(model="m", quantizer="q", calibration="c", tuning="t", selection="s", test="e")
BLOCK = Block("b", Tower.VISION, ("x", "y"))
OPTION = Option((Precision(4, 8), Precision(2, 8)))
CUT = Option((Precision(4, 8, clip=0.99), Precision(2, 8)))
PLAN = Plan.from_options([(BLOCK, OPTION)])
PLAIN = Configuration(PLAN, Recovery())
VIEWS = Configuration(PLAN, Recovery(views=2))
BOUNDS = {"x": {"4": [0.5, 1.0]}}
RANGES = {"x": {1.0: (-1.0, 2.0)}}
CUT_RANGES = {"x": {1.0: (-1.0, 2.0), 0.99: (-0.5, 1.5)}}

BASE = job()
VISION = job(profile={"vision": {}}, space={"clips": [1.0, 0.99]})


def with_data(**changes: object) -> JobSpec:
    return job(data={"source": "reference", **changes})


def evaluation(spec: JobSpec, configuration: Configuration, device: str = "cpu") -> str:
    return keys.evaluation_key(spec, IDS, device, configuration)


def features(
    spec: JobSpec,
    bounds: Mapping[str, object],
    device_type: str,
    ranges: keys.RangeTable = RANGES,
) -> str:
    return keys.features_key(
        spec, model="m", samples="k", device_type=device_type, bounds=bounds, ranges=ranges
    )


def vision_checkpoint() -> str:
    assert VISION.profile.vision is not None
    return keys.vision_checkpoint_key(
        model="m",
        samples="c",
        batches=[[0, 2], [1]],
        ranges=RANGES,
        quantizer=VISION.quantizer,
        vision=VISION.profile.vision,
        seed=0,
    )


# What the recipes of 0.1.0 gave before they stood in one place.
PINNED = {
    "6031d0624e331a4391b7f4edc0d3af3364731b94a39698c109e79b4500af8201": lambda: (
        keys.cell_key(BASE, IDS, BLOCK, OPTION).digest
    ),
    "dc9a1844dbb9162484e7db6d62036a0e5707fb3945b91c3eb70fb295fa91db83": lambda: evaluation(
        BASE, PLAIN
    ),
    "0b905e3db8c1987e9a058dce6dff7fb2b01e3fb5969374ff02ee2be755a0262c": lambda: evaluation(
        VISION, PLAIN
    ),
    "be944dca61905f9b65879486032fcb6b30522c5b7020ccc9b2b489c6d76981ee": lambda: (
        keys.bounds_key_without_batches(VISION, IDS)
    ),
    "1d25099e388bc1673094394cf22576fcffe7b690a9f454d31b80265ce9bb8e95": lambda: keys.clips_key(
        VISION, IDS, [(BLOCK, OPTION)], Plan.of({"w": Precision(3, 8)})
    ),
    "ba5993dd5936ab7871a06995694cca30b15c8030dde7c498690f58783419aa71": lambda: (
        keys.quantizer_identity(BASE, "cpu", {})
    ),
    "1e0ff5e6335a0cd7ba3739c7f1e0866006b199c324b5801a67f47f29ecbef273": lambda: (
        keys.quantizer_identity(BASE, "cuda", BOUNDS)
    ),
    "9f5b81f38effe989110c08103e160165d85b7d63d21dda33b8be1fa647943883": lambda: features(
        BASE, {}, "cpu"
    ),
    "271c4e24b3a54d9db086c9be02f8159b6b06abcb4e785bb9374b6cd88c270b19": lambda: features(
        BASE, BOUNDS, "cuda"
    ),
    "27d1f3c61a33198d3c700cd9f1f33ab4c32ae108d86b71f545421e7aecadabcd": lambda: (
        keys.feature_file_key("f", "test", PLAN)
    ),
    "1fd72ae13f95ef6c6811697339bea5ec08130f35fc42614bb121ca21dd4278cd": lambda: (
        keys.recovery_checkpoint_key("f", PLAIN)
    ),
    "7b308a03276448cf0b8782d0380e66583694b586695a12630736a81aec1f85af": vision_checkpoint,
}


@pytest.mark.parametrize("digest", PINNED)
def test_digests_are_those_of_earlier_versions(digest: str) -> None:
    assert PINNED[digest]() == digest


@pytest.mark.parametrize("change", [{"horizontal_flip": True}, {"seed": 1}])
def test_evaluations_with_augmented_views_are_shared_under_equal_augmentation_only(
    change: dict[str, object],
) -> None:
    plain, changed = with_data(), with_data(**change)

    assert evaluation(plain, VIEWS) != evaluation(changed, VIEWS)
    assert evaluation(plain, PLAIN) == evaluation(changed, PLAIN)


@pytest.mark.parametrize("section", ["objectives", "constraints"])
def test_evaluations_with_a_latency_are_shared_under_equal_batch_sizes_only(section: str) -> None:
    asked: dict[str, object] = {
        "objectives": ["error", "latency_s"],
        "constraints": {"max_latency_s": 1.0},
    }
    reference = {"source": "reference"}
    spec = job("digits", **{section: asked[section], "data": reference})
    smaller = job("digits", **{section: asked[section], "data": {**reference, "batch_size": 8}})

    assert evaluation(spec, PLAIN) != evaluation(smaller, PLAIN)
    assert evaluation(with_data(batch_size=8), PLAIN) == evaluation(BASE, PLAIN)


def test_evaluations_with_a_latency_in_a_target_are_shared_under_one_runtime_and_version() -> None:
    timed = job(target="onnxruntime", objectives=["error", "latency_s"])
    plain = job(target="onnxruntime")
    cells = [
        keys.quantizer_identity(timed, "cpu", {}, ["a cpu", 8, f"onnxruntime {version}"])
        for version in ("1.32.0", "1.33.0")
    ]

    timed_keys, plain_keys = (
        {keys.evaluation_key(spec, replace(IDS, quantizer=cell), "cpu", PLAIN) for cell in cells}
        for spec in (timed, plain)
    )

    assert len(timed_keys) == 2
    assert len(plain_keys) == 1
    assert evaluation(plain, PLAIN) == evaluation(job(), PLAIN)


def test_an_evaluation_without_a_latency_is_not_taken_where_one_is_limited() -> None:
    limited = job(constraints={"max_latency_s": 1.0})

    assert evaluation(limited, PLAIN) != evaluation(BASE, PLAIN)


def test_ranges_cut_at_a_percentile_are_shared_under_equal_batch_sizes_only() -> None:
    smaller = with_data(batch_size=8)
    cut = Configuration(Plan.from_options([(BLOCK, CUT)]))

    assert evaluation(smaller, cut) != evaluation(BASE, cut)
    assert keys.cell_key(smaller, IDS, BLOCK, CUT) != keys.cell_key(BASE, IDS, BLOCK, CUT)
    assert keys.cell_key(smaller, IDS, BLOCK, OPTION) == keys.cell_key(BASE, IDS, BLOCK, OPTION)
    assert features(BASE, {}, "cpu", CUT_RANGES) != features(BASE, {}, "cpu")


@pytest.mark.parametrize("measure", ["fisher", "gauss_newton", "entropy"])
def test_measures_of_whole_batches_are_shared_under_equal_batch_sizes_only(measure: str) -> None:
    profile = {"measure": measure}
    spec = job(profile=profile)
    smaller = job(profile=profile, data={"source": "reference", "batch_size": 8})

    assert keys.cell_key(smaller, IDS, BLOCK, OPTION) != keys.cell_key(spec, IDS, BLOCK, OPTION)


def test_an_evaluation_depends_on_its_device() -> None:
    assert evaluation(BASE, PLAIN, "cpu") != evaluation(BASE, PLAIN, "NVIDIA H200")
    assert features(BASE, {}, "cpu") != features(BASE, {}, "cuda")
    assert keys.quantizer_identity(BASE, "cpu", {}) != keys.quantizer_identity(BASE, "cuda", {})


def test_equal_cells_have_equal_keys_whatever_their_block_is_called() -> None:
    renamed = Block("another", BLOCK.tower, BLOCK.layers)

    assert keys.cell_key(BASE, IDS, renamed, OPTION) == keys.cell_key(BASE, IDS, BLOCK, OPTION)
    assert keys.cell_key(BASE, IDS, BLOCK, OPTION) == CellKey.of("m", "c", "q", BLOCK, OPTION)


def test_identities_are_read_back_from_a_provenance() -> None:
    rows = IDS.to_provenance()

    assert rows["cells"] == IDS.quantizer
    assert Identities.from_provenance({**rows, "host": "h"}) == IDS


def test_a_study_that_never_loaded_its_model_has_no_identities() -> None:
    with pytest.raises(SpecError, match="never loaded its model"):
        Identities.from_provenance({"host": "h"})


def test_what_is_left_open_shares_no_result_with_a_method_that_is_named() -> None:
    open_, *named = (
        job(quantizer={"rounding": rounding}) for rounding in ("auto", "nearest", "gptq", "descent")
    )

    for spec in named:
        for device in ("cpu", "cuda"):
            assert keys.quantizer_identity(open_, device, {}) != keys.quantizer_identity(
                spec, device, {}
            )
        assert evaluation(open_, PLAIN) != evaluation(spec, PLAIN)
        assert features(open_, {}, "cpu") != features(spec, {}, "cpu")
