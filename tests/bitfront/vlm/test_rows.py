import pytest
from torch import nn, randn

from bitfront.errors import SpecError
from bitfront.vlm.layers.rows import has_rows, multiplied_rows


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
