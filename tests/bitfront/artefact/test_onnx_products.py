"""A product in ONNX Runtime is that of the loader which travels with a packed checkpoint."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from bitfront.artefact.onnx.codes import PackedLayer, embedded_rows
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.products import EXACT, ROUNDED, Form, block_size, form_of, product
from bitfront.artefact.runtime.packed_model import InputRounding, PackedWeight
from bitfront.precision import Precision
from bitfront.quant.inputs import input_grid
from bitfront.quant.packing import packed_weight
from bitfront.spec import QuantizerSpec

pytestmark = pytest.mark.runtime

WIDTHS = (2, 3, 4, 5, 6, 8)
ROWS = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(
    weight: Tensor,
    precision: Precision,
    scheme: str,
    ranges: tuple[float, float] | None = None,
    activation_group: int = 0,
) -> PackedLayer:
    whole = {"scheme": "asymmetric", "zero_points": "whole"} if scheme == "whole" else {}
    given = {"scheme": scheme, "scale_search": False, **whole}
    quantizer = QuantizerSpec.model_validate(given)
    tensors = packed_weight(weight, precision, quantizer)
    if ranges is not None:
        low, high = map(torch.tensor, ranges)
        scale, zero = input_grid(low, high, precision.activation_bits)
        tensors |= {"input_scale": scale.half(), "input_zero": zero.to(torch.uint8)}
    return PackedLayer(
        "layer",
        precision.weight_bits,
        precision.activation_bits,
        precision.group,
        tuple(weight.shape),
        tensors,
        activation_group,
    )


def unpacked(layer: PackedLayer) -> Tensor:
    """The weight as the loader of a packed checkpoint gives it."""
    tensors = dict(layer.tensors)
    shape, bits = layer.shape, layer.weight_bits
    weight: Tensor = PackedWeight(tensors, shape, bits, layer.group, torch.float32)()
    return weight


def run(graph: Graph, given: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(
        graph.model({}).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    return torch.from_numpy(np.asarray(found))


def multiplied(layer: PackedLayer, inputs: Tensor, level: int = EXACT) -> Tensor:
    graph = Graph()
    x = graph.input("x", (*("abc"[: inputs.ndim - 1]), layer.columns))
    bias = torch.arange(layer.rows).half()
    y = product(graph, layer, x, ("bias", bias), level)
    graph.output(y, "y", (*("abc"[: inputs.ndim - 1]), layer.rows))
    return run(graph, {"x": inputs})


def expected(layer: PackedLayer, inputs: Tensor) -> Tensor:
    bits = layer.activation_bits
    if bits < 16:
        known = layer.tensors
        form = (known["input_scale"], known["input_zero"]) if "input_scale" in known else None
        inputs = InputRounding(bits, form, layer.activation_group)(inputs)
    return functional.linear(inputs, unpacked(layer), torch.arange(layer.rows).float())


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 16, 24, 48, 64, 5])
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_every_weight_is_multiplied_as_it_was_measured(bits: int, group: int, scheme: str) -> None:
    for columns in (7, 64, 150):
        layer = packed(normal(ROWS, columns), Precision(bits, 16, group), scheme)
        inputs = normal(2, 3, columns, seed=1)

        found = multiplied(layer, inputs)

        assert torch.allclose(found, expected(layer, inputs), atol=1e-4)


@pytest.mark.parametrize("ranges", [(-1.5, 2.0), (0.0, 3.0), None])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("inputs", [4, 6, 8])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_every_input_is_rounded_as_it_was_measured(
    bits: int, inputs: int, group: int, scheme: str, ranges: tuple[float, float] | None
) -> None:
    layer = packed(normal(ROWS, 40), Precision(bits, inputs, group), scheme, ranges)
    given = 2 * normal(5, 40, seed=2)

    found = multiplied(layer, given)

    # A code flips where x / scale lies at the middle of two in one library's last bit.
    differences = (found - expected(layer, given)).abs()
    assert float(differences.median()) < 1e-5
    assert float(differences.max()) < 0.5


@settings(max_examples=25, deadline=None)
@given(st.floats(-30, 9, width=32), st.integers(0, 2**31), st.sampled_from([4, 6, 8]))
def test_a_dynamic_range_has_the_scale_of_the_loader(exponent: float, seed: int, bits: int) -> None:
    identity = PackedLayer("layer", 16, bits, 0, (4, 4), {"weight": torch.eye(4).half()})
    given = 2**exponent * normal(64, 4, seed=seed)

    graph = Graph()
    graph.output(product(graph, identity, graph.input("x", ("n", 4)), None, EXACT), "y", ("n", 4))

    wanted = InputRounding(bits, None)(given)
    near = (run(graph, {"x": given}) - wanted).abs() <= 1e-6 * wanted.abs()
    assert float(near.float().mean()) > 0.98


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_fast_level_rounds_inputs_to_8_bits_in_groups_of_columns(
    bits: int, scheme: str
) -> None:
    layer = packed(normal(ROWS, 256), Precision(bits, 16, 32), scheme)
    inputs = normal(4, 256, seed=3)

    found = multiplied(layer, inputs, ROUNDED)

    groups = inputs.view(4, -1, block_size(layer))
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    rounded = ((groups / scale).round() * scale).view_as(inputs)
    assert torch.allclose(found, expected(layer, rounded), atol=1e-3)
    assert not torch.allclose(found, expected(layer, inputs), atol=1e-3)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize(
    ("columns", "group", "inputs_group"),
    [
        *((256, 0, 32), (100, 0, 32), (24, 0, 32), (256, 64, 32), (96, 32, 32)),
        *((256, 0, 128), (300, 0, 128), (24, 0, 128), (256, 128, 128), (512, 256, 128)),
    ],
)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("level", [EXACT, ROUNDED])
def test_inputs_in_groups_are_rounded_by_the_kernel_itself(
    bits: int, columns: int, group: int, inputs_group: int, scheme: str, level: int
) -> None:
    weight = normal(ROWS, columns)
    layer = packed(weight, Precision(bits, 8, group), scheme, activation_group=inputs_group)
    inputs = 2 * normal(2, 3, columns, seed=4)

    found = multiplied(layer, inputs, level)

    assert form_of(layer, level) is Form.BLOCKS
    assert torch.allclose(found, expected(layer, inputs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "inputs", "group", "inputs_group"),
    [(16, 8, 0, 32), (4, 6, 0, 32), (4, 8, 24, 32), (8, 4, 5, 32), (4, 8, 64, 128)],
)
@pytest.mark.parametrize("columns", [64, 171])
def test_inputs_in_groups_without_a_kernel_are_rounded_by_operators(
    bits: int, inputs: int, group: int, inputs_group: int, columns: int
) -> None:
    precision = Precision(bits, inputs, group)
    layer = packed(normal(ROWS, columns), precision, "symmetric", activation_group=inputs_group)
    given = torch.cat([2 * normal(5, columns, seed=2), torch.zeros(1, columns)])

    differences = (multiplied(layer, given) - expected(layer, given)).abs()

    assert form_of(layer, EXACT) is Form.FLOATS
    assert float(differences.median()) < 1e-5
    assert float(differences.max()) < 0.5


@pytest.mark.parametrize(
    ("text", "scheme", "static", "level", "form"),
    [
        ("w4a16", "symmetric", False, EXACT, Form.BLOCKS),
        ("w8a16", "symmetric", False, EXACT, Form.FLOATS),
        ("w8a16g32", "asymmetric", False, ROUNDED, Form.BLOCKS),
        ("w4a16g24", "symmetric", False, ROUNDED, Form.FLOATS),
        ("w4a8", "asymmetric", True, ROUNDED, Form.INTEGERS),
        ("w4a8g32", "symmetric", True, ROUNDED, Form.FLOATS),
        ("w8a8", "symmetric", False, ROUNDED, Form.FLOATS),
        ("w16a8", "symmetric", True, ROUNDED, Form.FLOATS),
    ],
)
def test_a_product_has_the_fastest_form_that_is_exact(
    text: str, scheme: str, static: bool, level: int, form: Form
) -> None:
    ranges = (-1.0, 1.0) if static else None
    layer = packed(normal(ROWS, 64), Precision.parse(text), scheme, ranges)

    assert form_of(layer, level) is form


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 5, 16])
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_an_embedding_looks_up_the_measured_rows(bits: int, group: int, scheme: str) -> None:
    layer = packed(normal(11, 23), Precision(bits, 16, group), scheme)
    tokens = torch.tensor([[0, 10, 3], [3, 3, 7]])
    graph = Graph()
    places = graph.input("tokens", ("n", 3), 7)
    graph.output(embedded_rows(graph, layer, places), "rows", ("n", 3, 23))

    found = run(graph, {"tokens": tokens})

    assert torch.equal(found, nn.functional.embedding(tokens, unpacked(layer)))
