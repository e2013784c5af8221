import torch
from torch import Tensor

from bitfront.quant.rounding.problem import damped_hessian
from bitfront.quant.rounding.targets import QuantizedInputs, output_target


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ridge(x: Tensor, wanted: Tensor, around: Tensor, damping: float) -> Tensor:
    """The weight nearest to `wanted` on `x`, drawn to `around`, as one system of equations."""
    n, columns = x.shape
    mean = float(x.square().sum()) / n / columns
    pull = (damping * mean * n) ** 0.5 * torch.eye(columns, dtype=torch.float64)
    equations = torch.cat([x, pull])
    right = torch.cat([wanted, pull @ around.T])
    solution: Tensor = torch.linalg.lstsq(equations, right).solution
    return solution.T


def test_a_target_is_the_regression_of_the_full_models_output() -> None:
    weight, full = _normal(5, 7, seed=0), _normal(60, 7, seed=1)
    x = full + 0.3 * _normal(60, 7, seed=2)
    inputs = QuantizedInputs.of(x, full)

    found = output_target(weight, damped_hessian(inputs.moment, 0.05), inputs)

    wanted = full.double() @ weight.double().T
    expected = _ridge(x.double(), wanted, weight.double(), 0.05)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_residual_target_also_regresses_what_the_stream_has_lost() -> None:
    weight, full = _normal(5, 7, seed=0), _normal(60, 7, seed=1)
    x, lost = full + 0.3 * _normal(60, 7, seed=2), _normal(60, 5, seed=3)
    inputs = QuantizedInputs.of(x, full)

    found = output_target(weight, damped_hessian(inputs.moment, 0.05), inputs, lost)

    wanted = full.double() @ weight.double().T + lost.double()
    expected = _ridge(x.double(), wanted, weight.double(), 0.05)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_inputs_that_lost_nothing_leave_the_weight_as_it_is() -> None:
    weight, x = _normal(5, 7, seed=0), _normal(3, 7, seed=1)  # fewer samples than columns
    inputs = QuantizedInputs.of(x, x)

    found = output_target(weight, damped_hessian(inputs.moment), inputs, torch.zeros(3, 5))

    assert torch.equal(found, weight.double())


def test_inputs_that_are_all_zero_leave_the_weight_as_it_is() -> None:
    weight, full = _normal(5, 7, seed=0), _normal(9, 7, seed=1)
    inputs = QuantizedInputs.of(torch.zeros(9, 7), full)

    found = output_target(weight, damped_hessian(inputs.moment), inputs)

    assert torch.equal(found, weight.double())
