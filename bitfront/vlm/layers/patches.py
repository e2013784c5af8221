"""Convolutions of any dimension whose patches lie beside each other, as one called Linear."""

import math
from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from bitfront.vlm.layers.attention import PackedLinear


def is_patch_projection(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv3d]:
    """Whether it is a Conv1d or Conv3d whose patches lie beside each other."""
    if not isinstance(module, nn.Conv1d | nn.Conv3d):
        return False
    apart = tuple(module.stride) == tuple(module.kernel_size)
    plain = set(module.padding) <= {0} and set(module.dilation) == {1} and module.groups == 1
    return apart and plain


class CalledPatches(nn.Module):
    """A convolution of patches in one dimension or three, computed by a Linear."""

    def __init__(self, convolution: nn.Conv1d | nn.Conv3d) -> None:
        super().__init__()
        self.kernel_size = tuple(convolution.kernel_size)
        bias = dict(convolution.named_parameters()).get("bias")
        matrix = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)
        self.linear = PackedLinear(matrix, bias)

    @property
    def weight(self) -> Tensor:
        """The matrix, whose dtype and device callers ask for."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return self.linear.bias

    def forward(self, x: Float[Tensor, "n channels *places"]) -> Float[Tensor, "n out *patches"]:
        """The convolution; what lies beside the last whole patches is not multiplied."""
        n, channels, *sizes = x.shape
        counts = [size // kernel for size, kernel in zip(sizes, self.kernel_size, strict=True)]
        for place, (count, kernel) in enumerate(zip(counts, self.kernel_size, strict=True)):
            x = x.narrow(2 + place, 0, count * kernel)
        dimensions = len(counts)
        split = [part for pair in zip(counts, self.kernel_size, strict=True) for part in pair]
        outer = [2 + 2 * place for place in range(dimensions)]
        inner = [3 + 2 * place for place in range(dimensions)]
        patches = x.reshape(n, channels, *split).permute(0, *outer, 1, *inner)
        rows = self.linear(patches.reshape(n, math.prod(counts), -1))
        output: Tensor = rows.transpose(1, 2).contiguous().unflatten(2, counts)
        return output
