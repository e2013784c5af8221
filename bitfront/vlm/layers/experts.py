"""Mixtures of experts whose packed weights belong to one called module an expert."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROUTED = "top_k_index"  # what transformers calls the experts that each token goes to


class ExpertLinear(nn.Linear):
    """One expert's matrix of a packed parameter; `functional.linear(x, it)` calls the module."""

    def __init__(self, packed: nn.Parameter, expert: int) -> None:
        _, rows, columns = packed.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.weight = nn.Parameter(packed.detach()[expert], requires_grad=False)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        _types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Stands for the matrix in `functional.linear(x, matrix)` without a bias."""
        if func is functional.linear and len(args) == 2 and not kwargs:
            x, module = args
            assert isinstance(module, cls)
            return module(x)
        return NotImplemented


class PackedExperts(nn.ModuleList):
    """The matrices of a packed parameter `(experts, rows, columns)`; indexed as it is."""

    def __init__(self, packed: nn.Parameter) -> None:
        super().__init__(ExpertLinear(packed, expert) for expert in range(len(packed)))
        self.shape = packed.shape
        self.dtype = packed.dtype

    def __getitem__(self, expert: int | Tensor) -> nn.Module:  # type: ignore[override]  # no slices
        return super().__getitem__(int(expert))


def is_packed_mixture(module: nn.Module) -> bool:
    """Whether the module routes tokens to experts whose matrices are rows of packed parameters.

    Matrices that are stored transposed, or with biases, are multiplied in another way.
    """
    kind = type(module)
    has_routing = _ROUTED in inspect.signature(kind.forward).parameters
    is_plain = not (getattr(module, "is_transposed", False) or getattr(module, "has_bias", False))
    return has_routing and is_plain and any(True for _ in packed_parameters(module))


def packed_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters `(experts, rows, columns)` that a module itself holds, by their keys."""
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.ndim == 3:
            yield key, parameter


def has_called_experts(module: nn.Module) -> bool:
    """Whether it is a mixture that `called_experts` made."""
    return any(isinstance(child, PackedExperts) for child in module.children())


def called_experts(experts: nn.Module) -> nn.Module:
    """The same mixture, run expert by expert, so that each matrix is called as a module."""
    new = copy.copy(experts)
    held = vars(new)
    held.update({key: copy.copy(value) for key, value in held.items() if isinstance(value, dict)})
    for key, parameter in packed_parameters(experts):
        delattr(new, key)
        setattr(new, key, PackedExperts(parameter))
    # The library chooses between fused forms of this function, which call no module.
    plain = inspect.unwrap(type(experts).forward)
    held["forward"] = MethodType(plain, new)
    return new


class EvenRouting:
    """Sends equally many tokens to every expert of a called mixture, while a model is traced.

    A sample that is routed as it wants to be shows some of the experts only.
    """

    def __init__(self, experts: nn.Module) -> None:
        self._signature = inspect.signature(experts.forward)
        self._experts = len(next(m for m in experts.children() if isinstance(m, PackedExperts)))
        self._tokens = 0

    def before(
        self, _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """A forward pre-hook that takes keywords; few tokens are taken several times."""
        given = self._signature.bind(*args, **kwargs).arguments
        routed = given[_ROUTED]
        self._tokens = len(routed)
        times = -(-self._experts // routed.numel())
        given = {
            name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in given.items()
        }
        count = given[_ROUTED].numel()
        places = torch.arange(count, device=routed.device) % self._experts
        given[_ROUTED] = places.view_as(given[_ROUTED]).to(routed.dtype)
        return (), given

    def after(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """A forward hook: the outputs of the tokens that were given."""
        return output[: self._tokens]
