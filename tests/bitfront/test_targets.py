"""The table of targets: what each runtime has a kernel for, and what is near to it."""

from typing import Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.layers import LayerKind
from bitfront.precision import ACTIVATION_BITS, WEIGHT_BITS, Precision
from bitfront.targets import (
    COMPRESSED_TENSORS,
    GGUF,
    ONNXRUNTIME,
    OPENVINO,
    TARGETS,
    TORCH,
    DeploymentTarget,
    Ranges,
    Target,
)

KINDS = st.sampled_from(LayerKind)
PRECISIONS = st.builds(
    Precision,
    st.sampled_from(WEIGHT_BITS),
    st.sampled_from(ACTIVATION_BITS),
    st.integers(0, 300),
)
RANGES: st.SearchStrategy[Ranges] = st.sampled_from(get_args(Ranges))
STATIC: Final = "static"
DYNAMIC: Final = "dynamic"
GROUPED: Final = "grouped"
TOKEN: Final = "dynamic_symmetric"


def test_every_target_of_a_job_is_in_the_table() -> None:
    assert {target.name for target in TARGETS} == set(DeploymentTarget) - {DeploymentTarget.ANY}


@given(KINDS, PRECISIONS, RANGES)
def test_torch_takes_whatever_can_be_searched(
    kind: LayerKind, precision: Precision, ranges: Ranges
) -> None:
    assert TORCH.native(kind, precision, ranges) is not None


@given(PRECISIONS, RANGES)
def test_what_is_near_has_a_kernel_and_the_same_width(precision: Precision, ranges: Ranges) -> None:
    for target in TARGETS:
        near = target.nearest(precision, ranges)

        assert near
        assert len(set(near)) == len(near)
        widths = {bits for form in target.formats for bits in form.weight_bits}
        for found in near:
            kept = found.weight_bits == precision.weight_bits
            assert kept or precision.weight_bits not in widths
            assert target.native(LayerKind.LINEAR, found, ranges) is not None
        if target.native(LayerKind.LINEAR, precision, ranges) is not None:
            assert near[0] == precision


@pytest.mark.parametrize(
    ("text", "ranges", "kernel"),
    [
        ("w4a16", STATIC, "MatMulNBits"),
        ("w3a16g32", STATIC, "MatMulNBits"),
        ("w4a16g24", STATIC, None),
        ("w8a8", STATIC, "MatMulIntegerToFloat"),
        ("w2a4", STATIC, "MatMulIntegerToFloat"),
        ("w8a8g32", STATIC, None),
        ("w8a8", DYNAMIC, None),
        ("w16a16", DYNAMIC, "MatMul"),
        ("w3a8", GROUPED, "MatMulNBits"),
        ("w4a8g64", GROUPED, "MatMulNBits"),
        ("w4a16g16", GROUPED, "MatMulNBits"),
        ("w4a8g16", GROUPED, None),
        ("w4a4", GROUPED, None),
        ("w16a8", GROUPED, None),
    ],
)
def test_onnxruntime_has_a_kernel_or_none(text: str, ranges: Ranges, kernel: str | None) -> None:
    found = ONNXRUNTIME.native(LayerKind.LINEAR, Precision.parse(text), ranges)

    assert (None if found is None else found.kernel) == kernel


@pytest.mark.parametrize(
    ("text", "has_one"),
    [
        ("w4a8", True),
        ("w4a8g128", True),
        ("w4a8g256", True),
        ("w4a8g64", False),
        ("w4a16g32", True),
    ],
)
@pytest.mark.parametrize("target", [ONNXRUNTIME, OPENVINO])
def test_a_group_of_weights_holds_whole_groups_of_inputs(
    target: Target, text: str, *, has_one: bool
) -> None:
    found = target.native(LayerKind.LINEAR, Precision.parse(text), GROUPED, 128)

    assert (found is not None) is has_one
    for near in target.nearest(Precision.parse(text), GROUPED, 128):
        assert target.native(LayerKind.LINEAR, near, GROUPED, 128) is not None


@pytest.mark.parametrize(
    ("text", "ranges", "kernel"),
    [
        ("w4a8g32", TOKEN, "Linear, packed"),
        ("w8a8", TOKEN, "Linear, packed"),
        ("w16a8", TOKEN, "Linear"),
        ("w4a4", TOKEN, None),
        ("w8a8", DYNAMIC, None),
        ("w4a16", STATIC, "Linear, packed"),
    ],
)
def test_compressed_tensors_rounds_8_bits_of_a_token_around_zero(
    text: str, ranges: Ranges, kernel: str | None
) -> None:
    found = COMPRESSED_TENSORS.native(LayerKind.LINEAR, Precision.parse(text), ranges)

    assert (None if found is None else found.kernel) == kernel
    assert COMPRESSED_TENSORS.native(LayerKind.CONVOLUTION, Precision(8, 8), ranges) is None


@pytest.mark.parametrize(
    ("text", "ranges", "kernel"),
    [
        ("w4a16g32", STATIC, "FullyConnected, packed"),
        ("w8a8", STATIC, "FullyConnected, int8"),
        ("w8a8g32", STATIC, None),
        ("w4a16g6", STATIC, None),
        ("w3a16", STATIC, None),
        ("w8a8", DYNAMIC, None),
        ("w16a16", STATIC, "FullyConnected, float32"),
        ("w2a8g32", GROUPED, "FullyConnected, packed"),
        ("w3a8", GROUPED, None),
        ("w4a8g16", GROUPED, None),
        ("w4a6", GROUPED, None),
    ],
)
def test_openvino_has_a_kernel_or_none(text: str, ranges: Ranges, kernel: str | None) -> None:
    found = OPENVINO.native(LayerKind.LINEAR, Precision.parse(text), ranges)

    assert (None if found is None else found.kernel) == kernel


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        ("w4a16g64", "Q4_0, Q5_0, Q8_0"),
        ("w3a16", "Q2_K, Q3_K, Q6_K"),
        ("w6a16g256", "Q2_K, Q3_K, Q6_K"),
        ("w6a16g32", None),
        ("w4a16g24", None),
        ("w4a8", None),
        ("w16a16", "F16"),
    ],
)
def test_gguf_has_a_block_type_or_none(text: str, kernel: str | None) -> None:
    found = GGUF.native(LayerKind.LINEAR, Precision.parse(text), STATIC)

    assert (None if found is None else found.kernel) == kernel


def test_a_width_without_a_kernel_gives_way() -> None:
    near = OPENVINO.nearest(Precision.parse("w5a16g32"), STATIC)

    assert list(map(str, near)) == ["w4a16g32", "w4a16"]


@pytest.mark.parametrize(
    ("text", "ranges", "expected"),
    [
        ("w4a16g24", STATIC, ["w4a16g16", "w4a16"]),
        ("w8a8g48", STATIC, ["w8a8", "w8a16g48", "w8a16g32", "w8a16"]),
        ("w4a8", DYNAMIC, ["w4a16", "w4a16g16"]),
    ],
)
def test_the_nearest_changes_the_group_or_the_inputs(
    text: str, ranges: Ranges, expected: list[str]
) -> None:
    assert list(map(str, ONNXRUNTIME.nearest(Precision.parse(text), ranges))) == expected
