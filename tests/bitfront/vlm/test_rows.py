import pytest
from torch import equal, nn, randn

from bitfront.errors import SpecError
from bitfront.vlm.layers.rows import has_rows, multiplied_rows, rows_form


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 2), nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3, padding="valid")],
    ids=str,
)
def test_rows_times_the_weight_are_the_outputs(module: nn.Linear | nn.Conv2d) -> None:
    inputs = randn(2, 4, 4, 4)

    rows = multiplied_rows(module, inputs)

    products = rows @ module.weight.flatten(1).T
    outputs = module(inputs)
    if isinstance(module, nn.Conv2d):
        outputs = outputs.movedim(1, -1)
    assert has_rows(module)
    assert module.bias is not None
    assert (products + module.bias).allclose(outputs.flatten(0, -2), atol=1e-5)


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")], ids=str
)
def test_a_convolution_with_groups_has_none(module: nn.Conv2d) -> None:
    assert not has_rows(module)

    with pytest.raises(SpecError, match=r"set quantizer\.rounding to nearest"):
        multiplied_rows(module, randn(2, 4, 4, 4))


def test_convolutions_of_one_input_have_equal_rows_only_where_their_patches_lie_alike() -> None:
    inputs = randn(2, 3, 8, 8)
    one, alike = (nn.Conv2d(3, out, 3, stride=2, padding=1) for out in (4, 6))
    others = [nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 2, 1, 2)]

    assert rows_form(alike) == rows_form(one)
    assert equal(multiplied_rows(alike, inputs), multiplied_rows(one, inputs))
    for other in others:
        assert rows_form(other) != rows_form(one)
    assert rows_form(nn.Linear(3, 4)) == rows_form(nn.Linear(3, 5))
