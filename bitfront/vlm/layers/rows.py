"""A module's input as the rows that its weight multiplies."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bitfront.errors import SpecError


def has_rows(module: nn.Module) -> bool:
    """Whether `multiplied_rows` takes the module."""
    if not isinstance(module, nn.Conv2d):
        return True
    return module.groups == 1 and module.padding != "same"


def rows_form(module: nn.Module) -> tuple[object, ...]:
    """What makes rows of an input: modules that share one and this have the same rows.

    Empty for tokens; of a convolution how its patches lie.
    """
    if not isinstance(module, nn.Conv2d):
        return ()
    return (module.kernel_size, module.dilation, module.padding, module.stride)


def multiplied_rows(
    module: nn.Module, inputs: Float[Tensor, "*shape"]
) -> Float[Tensor, "n columns"]:
    """What the weight multiplies: tokens, or a convolution's patches.

    Raises:
        SpecError: The module is a convolution with groups, or with padding "same".
    """
    if not isinstance(module, nn.Conv2d):
        return inputs.flatten(0, -2)
    padding = 0 if module.padding == "valid" else module.padding
    if isinstance(padding, str) or not has_rows(module):
        raise SpecError(
            "a convolution with groups or padding 'same' has no rows of inputs here: set "
            "quantizer.rounding to nearest"
        )
    patches = functional.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)
    return patches.transpose(1, 2).flatten(0, 1)
