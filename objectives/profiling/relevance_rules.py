"""Layer-wise relevance propagation: how relevance runs back through a model's operations."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

EPSILON: Final = 1e-6
"""Of the epsilon rule, as a share of the root mean square of what is divided by."""

Operation = Callable[..., Tensor]


class RelevanceRules(TorchFunctionMode):
    """While it is on, gradients times values are relevances.

    Operations give what they always give; the way back is another. With `R = y g`, the relevance
    of a value `y` with gradient `g`:

    - **Products with weights and sums**: the epsilon rule (Bach et al., PLOS ONE 10(7), 2015, Eq
      58), `R_i = sum_j x_i w_ij R_j / (z_j + eps sign z_j)`; a bias takes its share.
    - **Products of two values** (attention with values, queries with keys, gates): the same with
      half for either factor (Achtibat et al., arXiv:2402.05602, Eq 15).
    - **Layer normalisation**, also without mean: the deviation counts as a constant (Ali et al.,
      arXiv:2202.07304, Eq 9), so that the rest is linear. So does any norm that is divided by.
    - **Softmax and activations**: each input gets the relevance of its own output.

    So no relevance is made, and none is lost but by `eps` and where a value is zero.
    """

    def __torch_function__(
        self,
        func: Operation,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation, by its rule where it has one."""
        rule = _RULES.get(func.__name__.removeprefix("__").removesuffix("__"))
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs or {})
        return rule(func, *args, **kwargs or {})


def _stabilised(values: Tensor) -> Tensor:
    """`values + eps sign values`, where that can be divided by."""
    finite = torch.where(values.isfinite(), values, 0)
    eps = EPSILON * finite.square().mean().sqrt() + torch.finfo(values.dtype).tiny
    return values + torch.where(values < 0, -eps, eps)


def _passed(given: Tensor, made: Tensor, factor: Tensor | float) -> Tensor:
    """What was made of some values, with its gradient times a factor as theirs."""
    sent = given.masked_fill(~given.isfinite(), 0) * factor
    return made.detach() + (sent - sent.detach())


def _epsilon(made: Tensor) -> Tensor:
    """The epsilon rule at the output of a sum of products."""
    with torch.no_grad():
        factor = made / _stabilised(made)
    return _passed(made, made, factor)


def _sum_of_products(func: Operation, *args: object, **kwargs: object) -> Tensor:
    return _epsilon(func(*args, **kwargs))


def _product(func: Operation, one: object, other: object, **kwargs: object) -> Tensor:
    """A product; of two factors that both vary, each takes half of the relevance."""
    if all(isinstance(own, Tensor) and own.requires_grad for own in (one, other)):
        one, other = (_passed(own, own, 0.5) for own in (one, other) if isinstance(own, Tensor))
    return func(one, other, **kwargs)


def _matrix_product(func: Operation, one: object, other: object, **kwargs: object) -> Tensor:
    return _epsilon(_product(func, one, other, **kwargs))


def _elementwise(func: Operation, given: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Each input gets the relevance of its output."""
    with torch.no_grad():
        made = func(given, *args, **kwargs)
        factor = made / _stabilised(given)
    return _passed(given, made, factor)


def _constant(func: Operation, *args: object, **kwargs: object) -> Tensor:
    return func(*args, **kwargs).detach()


def _quotient(func: Operation, one: object, other: object, **kwargs: object) -> Tensor:
    return func(one, other.detach() if isinstance(other, Tensor) else other, **kwargs)


def _normalized(
    _func: Operation,
    given: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    centred = given - given.mean(_last(shape), keepdim=True)
    return _scaled(centred, shape, weight, eps) + (0 if bias is None else bias)


def _scaled_by_root(
    _func: Operation,
    given: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return _scaled(given, shape, weight, torch.finfo(given.dtype).eps if eps is None else eps)


def _scaled(given: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    size = (given.square().mean(_last(shape), keepdim=True) + eps).rsqrt().detach()
    return given * (size if weight is None else size * weight.detach())


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(shape), 0))


def _unit(
    _func: Operation,
    given: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    **_: object,
) -> Tensor:
    unit: Tensor = given / given.norm(p, dim, keepdim=True).clamp_min(eps).detach()
    return unit


def _log_softmax(func: Operation, given: Tensor, *args: object, **kwargs: object) -> Tensor:
    made = func(given.detach(), *args, **kwargs)
    return given + (made - given.detach())


def _attention(
    _func: Operation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    _dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: object,
) -> Tensor:
    """Attention, one product after the other."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (own.repeat_interleave(groups, dim=-3) for own in (key, value))
    logits = _matrix_product(torch.matmul, query, key.mT) * (scale or query.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = _elementwise(functional.softmax, logits, dim=-1)
    return _matrix_product(torch.matmul, weights, value)


_RULES: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "addmm"), _sum_of_products),
        **dict.fromkeys(("matmul", "bmm", "rmatmul"), _matrix_product),
        **dict.fromkeys(("mul", "rmul", "multiply"), _product),
        **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _quotient),
        **dict.fromkeys(
            ("gelu", "silu", "relu", "tanh", "softmax", "quick_gelu", "hardswish"), _elementwise
        ),
        # What weighs or divides is a constant: gates of a value by itself, and norms.
        **dict.fromkeys(
            ("sigmoid", "rsqrt", "sqrt", "norm", "vector_norm", "std", "rtruediv"), _constant
        ),
        "layer_norm": _normalized,
        "rms_norm": _scaled_by_root,
        "normalize": _unit,
        "log_softmax": _log_softmax,
        "scaled_dot_product_attention": _attention,
    }
)
