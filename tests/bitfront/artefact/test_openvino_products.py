"""A product in OpenVINO is that of the loader which travels with a packed checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitfront.artefact.onnx.codes import PackedLayer
from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.openvino.cpu import cpu_changes, rounds_in_groups
from bitfront.artefact.openvino.kernels import OpenVinoKernels, by_input
from bitfront.artefact.openvino.representation import write_representation
from bitfront.artefact.openvino.told import Form, dynamic_group, form_of, rounds_itself
from bitfront.artefact.runtime.exported_model import int8_saturates, open_graph
from bitfront.precision import Precision
from bitfront.quant.inputs import GROUP
from tests.bitfront.artefact.test_onnx_products import (
    ROWS,
    WIDTHS,
    expected,
    normal,
    packed,
    unpacked,
)

pytestmark = pytest.mark.runtime

KERNELS = OpenVinoKernels()


def run(graph: Graph, layer: PackedLayer, given: Tensor, folder: Path) -> Tensor:
    write_representation(graph.model({}), by_input([layer]), folder / "model.xml")
    graph_of = open_graph(folder, "model", threads=1, activation_group=dynamic_group([layer]))
    found = graph_of({"x": given.numpy()})
    return torch.from_numpy(found["y"])


def multiplied(layer: PackedLayer, inputs: Tensor, folder: Path) -> Tensor:
    graph = Graph()
    x = graph.input("x", (*("abc"[: inputs.ndim - 1]), layer.columns))
    y = KERNELS.product(graph, layer, x, ("bias", torch.arange(layer.rows).half()))
    graph.output(y, "y", (*("abc"[: inputs.ndim - 1]), layer.rows))
    return run(graph, layer, inputs, folder)


@pytest.mark.parametrize("scheme", ["asymmetric", "whole", "symmetric"])
@pytest.mark.parametrize(("columns", "group"), [(63, 0), (64, 24), (150, 32), (63, 5)])
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_every_weight_is_multiplied_as_it_was_measured(
    bits: int, columns: int, group: int, scheme: str, tmp_path: Path
) -> None:
    layer = packed(normal(ROWS, columns), Precision(bits, 16, group), scheme)
    inputs = normal(2, 3, columns, seed=1)

    found = multiplied(layer, inputs, tmp_path)

    assert torch.allclose(found, expected(layer, inputs), atol=1e-4)


@pytest.mark.parametrize("ranges", [(-1.5, 2.0), (0.0, 3.0), None])
@pytest.mark.parametrize("scheme", ["asymmetric", "whole", "symmetric"])
@pytest.mark.parametrize(("bits", "inputs", "group"), [(2, 4, 0), (5, 6, 0), (8, 8, 0), (4, 8, 16)])
def test_every_input_is_rounded_as_it_was_measured(
    bits: int,
    inputs: int,
    group: int,
    scheme: str,
    ranges: tuple[float, float] | None,
    tmp_path: Path,
) -> None:
    layer = packed(normal(ROWS, 40), Precision(bits, inputs, group), scheme, ranges)
    given = 2 * normal(5, 40, seed=2)

    differences = (multiplied(layer, given, tmp_path) - expected(layer, given)).abs()

    assert float(differences.median()) < 1e-5
    assert float(differences.max()) < 0.5


@pytest.mark.parametrize("scheme", ["asymmetric", "whole", "symmetric"])
@pytest.mark.parametrize(
    ("columns", "group", "inputs_group"),
    [
        *((256, 0, 32), (100, 0, 32), (24, 0, 32), (256, 64, 32), (96, 24, 32)),
        *((256, 0, 128), (300, 0, 128), (24, 0, 128), (256, 128, 128), (256, 64, 128)),
    ],
)
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_inputs_in_groups_are_rounded_as_they_were_measured(
    bits: int, columns: int, group: int, inputs_group: int, scheme: str, tmp_path: Path
) -> None:
    precision = Precision(bits, 8, group)
    layer = packed(normal(ROWS, columns), precision, scheme, activation_group=inputs_group)
    given = 2 * normal(2, 3, columns, seed=4)
    stays = rounds_itself(layer) and not rounds_in_groups()
    measured = replace(layer, activation_bits=16) if stays else layer

    differences = (multiplied(layer, given, tmp_path) - expected(measured, given)).abs()

    # Where standard operators round, a code flips in one library's last bit.
    assert float(differences.median()) < 2e-5
    assert float(differences.max()) < (1e-4 if rounds_itself(layer) else 0.5)


@pytest.mark.parametrize("ranges", [(-1.5, 2.0), (0.0, 2.0), (-1.0, 1.0)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_no_sum_of_products_overflows(
    bits: int, ranges: tuple[float, float], tmp_path: Path
) -> None:
    weight = torch.ones(16, 64)
    weight[:, ::2] = 0.9
    layer = packed(weight, Precision(bits, 8, 0), "symmetric", ranges)
    given = torch.full((3, 64), ranges[1])

    found = multiplied(layer, given, tmp_path)

    assert torch.allclose(found, expected(layer, given), rtol=1e-4)


def test_what_this_machine_changes_is_said() -> None:
    static = [
        packed(normal(ROWS, 64), Precision(bits, 8, 0), "symmetric", (-1.0, 1.0))
        for bits in (4, 8, 8)
    ]
    grouped = packed(normal(ROWS, 64), Precision(4, 8, 0), "symmetric", activation_group=GROUP)

    assert cpu_changes(static[:1]) == []
    assert [text.count("2 layers of 8 bits") for text in cpu_changes(static)] == (
        [1] if int8_saturates() else []
    )
    assert [text.startswith("the inputs of 1 layers") for text in cpu_changes([grouped])] == (
        [] if rounds_in_groups() else [True]
    )


@pytest.mark.parametrize(
    ("text", "columns", "scheme", "is_by_kernel"),
    [
        ("w4a8", 64, "symmetric", True),
        ("w2a8g64", 128, "symmetric", True),
        ("w4a8", 24, "symmetric", False),
        ("w4a8g16", 64, "symmetric", False),
        ("w4a8", 64, "asymmetric", False),
        ("w4a8", 64, "whole", True),
        ("w8a8", 64, "asymmetric", True),
        ("w4a6", 64, "symmetric", False),
        ("w16a8", 64, "symmetric", False),
        ("w4a16", 64, "symmetric", False),
    ],
)
def test_the_kernel_rounds_inputs_where_it_can(
    text: str, columns: int, scheme: str, *, is_by_kernel: bool
) -> None:
    precision = Precision.parse(text)
    group = GROUP if precision.quantizes_input else 0
    layer = packed(normal(ROWS, columns), precision, scheme, activation_group=group)

    assert rounds_itself(layer) is is_by_kernel


@pytest.mark.parametrize("scheme", ["asymmetric", "whole", "symmetric"])
@pytest.mark.parametrize("group", [0, 5, 16])
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_an_embedding_looks_up_the_measured_rows(
    bits: int, group: int, scheme: str, tmp_path: Path
) -> None:
    layer = packed(normal(11, 23), Precision(bits, 16, group), scheme)
    tokens = torch.tensor([[0, 10, 3], [3, 3, 7]])
    graph = Graph()
    graph.output(KERNELS.rows(graph, layer, graph.input("x", ("n", 3), 7)), "y", ("n", 3, 23))

    found = run(graph, layer, tokens, tmp_path)

    assert torch.allclose(found, nn.functional.embedding(tokens, unpacked(layer)), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "scheme", "static", "form"),
    [
        ("w4a16g24", "asymmetric", False, Form.PACKED),
        ("w4a8", "symmetric", True, Form.INTEGERS),
        ("w4a8", "asymmetric", True, Form.PACKED),
        ("w8a8", "symmetric", False, Form.PACKED),
        ("w16a8", "symmetric", True, Form.FLOATS),
    ],
)
def test_a_product_has_the_form_that_openvino_gives_it(
    text: str, scheme: str, static: bool, form: Form
) -> None:
    ranges = (-1.0, 1.0) if static else None
    layer = packed(normal(ROWS, 64), Precision.parse(text), scheme, ranges)

    assert form_of(layer) is form
