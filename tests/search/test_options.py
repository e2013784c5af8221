"""Options: no two ways to say the same, and nothing lost that is worth measuring."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.choices import layer_precisions
from bitfront.errors import SpecError
from bitfront.layers import Block, Layer, LayerKind, Tower
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import Cell, Resource
from bitfront.spec import QuantizerSpec, SpaceSpec
from search.options import block_options, screen, undominated
from search.seeds import uniform_plans


def make_layer(name: str, kind: LayerKind = LayerKind.LINEAR, columns: int = 64) -> Layer:
    return Layer(name, Tower.VISION, kind, 8, columns, 1, name, "vision")


def make_cell(nbytes: int, error: float, operations: float = 0.0, bits: int = 2) -> Cell:
    return Cell("b", Option((Precision(bits),)), nbytes, operations, error)


def test_a_block_has_the_product_of_its_layers_options() -> None:
    layers = [make_layer("a"), make_layer("b")]
    space = SpaceSpec(weight_bits=(2, 4, 8), activation_bits=(6, 8))

    options = block_options(Block("x", Tower.VISION, ("a", "b")), layers, space, QuantizerSpec())

    assert len(options) == len(set(options)) == (3 * 2) ** 2


def test_16_bits_carry_no_group_and_no_precision_a_narrower_clip() -> None:
    space = SpaceSpec(
        weight_bits=(4, 16), activation_bits=(8, 16), groups=(0, 16), clips=(1.0, 0.99)
    )

    texts = {
        str(precision) for precision in layer_precisions(make_layer("a"), space, QuantizerSpec())
    }

    eight = {"w4a8", "w4a8g16", "w16a8"}
    assert texts == eight | {"w4a16", "w4a16g16", "w16a16"}


def test_an_embedding_has_no_input_to_quantize() -> None:
    space = SpaceSpec(weight_bits=(4, 8), activation_bits=(4, 8), clips=(1.0, 0.99))

    found = layer_precisions(make_layer("e", LayerKind.EMBEDDING), space, QuantizerSpec())

    assert found == [Precision(4), Precision(8)]


@pytest.mark.parametrize(("activations", "bits"), [("dynamic", 8), ("dynamic_symmetric", 16)])
def test_a_convolution_has_quantized_inputs_where_its_runtime_has_them(
    activations: str, bits: int
) -> None:
    space = SpaceSpec(weight_bits=(4,), activation_bits=(8,))
    quantizer = QuantizerSpec.model_validate({"activations": activations})
    layers = [make_layer("c", LayerKind.CONVOLUTION), make_layer("a")]

    found = [layer_precisions(layer, space, quantizer) for layer in layers]

    assert found == [[Precision(4, bits)], [Precision(4, 8)]]
    assert uniform_plans(layers, space, quantizer) == [
        Plan.of({"c": Precision(4, bits), "a": Precision(4, 8)})
    ]


def test_a_group_of_the_whole_row_is_a_scale_a_row() -> None:
    space = SpaceSpec(weight_bits=(4,), activation_bits=(8,), groups=(0, 64, 128, 32))

    found = layer_precisions(make_layer("a", columns=64), space, QuantizerSpec())

    assert found == [Precision(4, 8), Precision(4, 8, group=32)]


def test_kept_layers_have_their_fixed_width() -> None:
    space = SpaceSpec(weight_bits=(2, 4), keep={"*.proj": 8})

    assert layer_precisions(make_layer("visual.proj"), space, QuantizerSpec()) == [Precision(8, 8)]
    assert len(layer_precisions(make_layer("visual.fc"), space, QuantizerSpec())) == 2


def test_more_joint_options_than_can_be_measured_are_refused() -> None:
    names = ("a", "b", "c")
    space = SpaceSpec(weight_bits=(2, 3, 4, 6, 8), activation_bits=(6, 8), groups=(0, 8, 16, 32, 4))

    with pytest.raises(SpecError, match="block x has 125,000 joint options"):
        block_options(
            Block("x", Tower.VISION, names), [make_layer(n) for n in names], space, QuantizerSpec()
        )


BLOCK = Block("x", Tower.VISION, ("a", "b"))
BITS = (2, 3, 4, 8)


@given(
    st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    st.sampled_from([0.5, 1.0, 1.5, 3.0]),
)
def test_screening_keeps_all_that_is_near_the_predicted_front(
    errors: list[float], slack: float
) -> None:
    singles = {
        layer: {
            Option((Precision(bits, 8),)): make_cell(bits, errors[4 * row + n])
            for n, bits in enumerate(BITS)
        }
        for row, layer in enumerate("ab")
    }
    options = [Option((Precision(p, 8), Precision(q, 8))) for p in BITS for q in BITS]

    kept = screen(BLOCK, options, singles, slack)

    def predict(option: Option) -> tuple[int, float]:
        cells = [
            singles[layer][Option((precision,))]
            for layer, precision in zip("ab", option.precisions, strict=True)
        ]
        return sum(cell.nbytes for cell in cells), sum(cell.error for cell in cells)

    for option in options:
        nbytes, error = predict(option)
        rivals = [predict(o)[1] for o in options if predict(o)[0] <= nbytes]
        even = option.precisions[0] == option.precisions[1]
        assert (option in kept) == (even or error <= max(slack, 1) * min(rivals))


def test_without_slack_every_option_is_measured() -> None:
    options = [Option((Precision(p), Precision(q))) for p in BITS for q in BITS]

    assert screen(BLOCK, options, {}, 0) == options


cells = st.lists(
    st.builds(
        make_cell,
        st.integers(0, 5),
        st.integers(0, 5).map(float),
        st.integers(0, 5).map(float),
        st.sampled_from([2, 3, 4]),
    ),
    max_size=12,
)


@pytest.mark.parametrize("counted", [False, True])
@given(found=cells)
def test_what_is_dropped_is_beaten_by_what_is_kept(counted: bool, found: list[Cell]) -> None:
    resources = (Resource.NBYTES, Resource.BIT_OPERATIONS)[: 1 + counted]

    kept = undominated(found, resources)

    def values(cell: Cell) -> tuple[float, ...]:
        costs = (float(cell.nbytes), cell.error)
        return (*costs, cell.bit_operations) if counted else costs

    def covers(a: Cell, b: Cell) -> bool:
        return all(x <= y for x, y in zip(values(a), values(b), strict=True))

    assert all(any(covers(keeper, cell) for keeper in kept) for cell in found)
    assert not any(covers(a, b) for a in kept for b in kept if a is not b)
