import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.quant.packing import pack_codes, unpack_codes
from bitfront.quant.rounding import descent as descent_module
from bitfront.quant.rounding.descent import descent
from bitfront.quant.rounding.gptq import _spread, _spread_compiled, gptq
from bitfront.quant.rounding.levels import levels_of
from bitfront.quant.rounding.nearest import nearest
from bitfront.quant.rounding.problem import (
    RoundingMethod,
    RoundingProblem,
    damped_hessian,
    rounding_error,
)

METHODS: dict[str, RoundingMethod] = {"nearest": nearest, "gptq": gptq, "descent": descent}


def _inputs(samples: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixing


def _problem(
    inputs: Tensor, *, bits: int = 2, group: int = 0, symmetric: bool = False
) -> RoundingProblem:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(16, inputs.shape[1], generator=generator)
    hessian = damped_hessian(inputs.T @ inputs / len(inputs))
    return RoundingProblem(target, hessian, bits, group, symmetric)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 8, 5])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_row_rises_from_round_to_round(bits: int, group: int, symmetric: bool) -> None:
    problem = _problem(_inputs(100, 24), bits=bits, group=group, symmetric=symmetric)

    errors = [rounding_error(problem, descent(problem, rounds)) for rounds in range(5)]

    for earlier, later in itertools.pairwise(errors):
        assert (later <= earlier * (1 + 1e-9)).all()
    assert (errors[0] <= rounding_error(problem, nearest(problem))).all()
    assert (errors[0] <= rounding_error(problem, gptq(problem))).all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_whole_zero_points_stay_codes_in_every_method(
    bits: int, group: int, method: RoundingMethod
) -> None:
    problem = replace(_problem(_inputs(100, 24), bits=bits, group=group), whole=True)

    found = method(problem)

    assert found.zero is not None
    assert not (found.zero % 2 ** (8 - bits)).any()
    start = rounding_error(problem, nearest(problem))
    assert (rounding_error(problem, found) <= start * (1 + 1e-9)).all() or method is gptq


@pytest.mark.parametrize("bits", [2, 3])
def test_two_columns_of_independent_inputs_get_the_best_of_all_codes(bits: int) -> None:
    inputs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) * torch.tensor([3, 1])
    problem = _problem(inputs, bits=bits)

    found = descent(problem)

    grid = levels_of(found)
    errors = []
    for codes in itertools.product(range(2**bits), repeat=2):
        values = grid.scale * (torch.tensor(codes, dtype=torch.float64) - grid.zero)
        error = problem.target.double() - values
        errors.append(((error @ problem.hessian) * error).sum(1))
    best = torch.stack(errors).amin(0)
    torch.testing.assert_close(rounding_error(problem, found), best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [0, 8, 5])
def test_compiled_loops_choose_the_codes_that_tensor_operations_choose(
    group: int, symmetric: bool
) -> None:
    problem = _problem(_inputs(100, 24), bits=3, group=group, symmetric=symmetric)
    start = nearest(problem)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    factor = torch.linalg.cholesky(problem.hessian[order][:, order], upper=True)
    found = []

    for spread, sweep in (
        (_spread, descent_module._sweep),
        (_spread_compiled, descent_module._sweep_compiled),
    ):
        levels = levels_of(start)
        spread(problem.target.double()[:, order], levels, order, factor)
        after_spread = levels.points.clone()
        gradient = (problem.target.double() - levels.values()) @ problem.hessian
        assert sweep(problem, gradient, levels)
        rest = (problem.target.double() - levels.values()) @ problem.hessian
        torch.testing.assert_close(gradient, rest)
        found.append((after_spread, levels.points))

    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_packed_codes_come_back_the_same(method: RoundingMethod) -> None:
    problem = _problem(_inputs(100, 24), bits=3)

    codes = method(problem).codes

    assert torch.equal(unpack_codes(pack_codes(codes, 3), 3, codes.numel()), codes.flatten())


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(10, 12, dtype=torch.float64),
        torch.ones(10, 12, dtype=torch.float64),
        _inputs(3, 12),
        _inputs(50, 12) * (torch.arange(12) > 4),
    ],
    ids=["all zero", "constant", "fewer samples than columns", "dead columns"],
)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_inputs_of_low_rank_have_a_finite_result(method: RoundingMethod, inputs: Tensor) -> None:
    problem = _problem(inputs)

    quantized = method(problem)

    assert rounding_error(problem, quantized).isfinite().all()
    assert int(quantized.codes.max()) < 4
    assert quantized.scale.isfinite().all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_weight_with_nan_is_refused(method: RoundingMethod) -> None:
    target = torch.full((2, 3), float("nan"))

    with pytest.raises(InvalidModel):
        method(RoundingProblem(target, torch.eye(3, dtype=torch.float64), 2))


def test_inputs_with_nan_are_refused() -> None:
    with pytest.raises(InvalidModel):
        damped_hessian(torch.full((3, 3), float("nan")))
