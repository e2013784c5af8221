"""The section `quantizer`: how weights and inputs are mapped to codes."""

from enum import StrEnum
from typing import Literal

from bitfront.layers import LayerKind
from bitfront.precision import ACTIVATION_BITS
from bitfront.spec.section import Section
from bitfront.targets import Ranges


class Rounding(StrEnum):
    """How the codes of a weight matrix are chosen; the stored format is the same for all.

    `nearest` takes each weight's nearest level. `gptq` and `descent` make the error of the layer's
    outputs small on the calibration samples; see `bitfront.quant.rounding`. `auto` is `descent`
    where it can be had: a layer whose moments are not known has its nearest codes, and where the
    full model's inputs take too much memory the target `auto` is `own`. The other methods are
    refused there.
    """

    AUTO = "auto"
    NEAREST = "nearest"
    GPTQ = "gptq"
    DESCENT = "descent"


class Target(StrEnum):
    """What `gptq` and `descent` fit the codes to; see `bitfront.quant.rounding.targets`.

    `own` is the layer's own weight, on the inputs of the full model. `output` is the full model's
    output, on the inputs that the layer gets from the quantized ones before it. `residual` is
    the same, and layers that write into a residual stream also make good what it has lost before
    them. `auto` is `residual` for layers whose inputs have 8 bits or more, and `own` for others:
    a regression on coarse inputs shrinks the outputs.
    """

    OWN = "own"
    OUTPUT = "output"
    RESIDUAL = "residual"
    AUTO = "auto"


class RangeKind(StrEnum):
    """Where a static input range ends.

    `measured`: at the extremes of the calibration samples, or at the percentile of a clip.
    `searched`: where the output of the layer changes least (where a clip or learned bounds give
    no range already; a convolution with groups keeps its measured range). `auto`: `searched` for
    inputs of fewer than 8 bits where `rounding` is not `nearest`, and else `measured`.
    """

    MEASURED = "measured"
    SEARCHED = "searched"
    AUTO = "auto"


class QuantizerSpec(Section):
    """How weights and inputs are mapped to codes, for all layers alike.

    `zero_points` is for asymmetric weights: `whole` ones are codes, which is what integer kernels
    hold; `fractional` ones use all bits of their byte, which is better below 5 bits.
    `target` says what every rounding but `nearest` fits the codes to.
    `ranges` is for static activations.
    `activations` says where the range of an input's codes is from: `static`, from the calibration
    split; `dynamic`, each token's own; `grouped`, each token's own in groups of columns,
    symmetric, as the integer kernels of runtimes round; `dynamic_symmetric`, each token's own,
    symmetric, as compressed-tensors rounds: of linear layers alone, a convolution's input stays.
    `activation_group` is how many columns such a group has: 32, which every runtime rounds by, or
    128, with which ONNX Runtime is faster.
    """

    scheme: Literal["symmetric", "asymmetric"] = "asymmetric"
    zero_points: Literal["fractional", "whole"] = "fractional"
    scale_search: bool = True
    rounding: Rounding = Rounding.AUTO
    target: Target = Target.AUTO
    ranges: RangeKind = RangeKind.AUTO
    activations: Ranges = "static"
    activation_group: Literal[32, 128] = 32

    def rounds(self, kind: LayerKind) -> bool:
        """Whether layers of a kind may have quantized inputs; an embedding has none."""
        if kind is LayerKind.CONVOLUTION:
            return self.activations != "dynamic_symmetric"
        return kind is not LayerKind.EMBEDDING

    @property
    def has_whole_zeros(self) -> bool:
        """Whether the zero point of a weight is a code."""
        return self.scheme == "symmetric" or self.zero_points == "whole"

    @property
    def is_sequential(self) -> bool:
        """Whether a layer's weight may depend on the plan of the layers before it."""
        return self.rounding is not Rounding.NEAREST and self.target is not Target.OWN

    @property
    def may_search(self) -> bool:
        """Whether the inputs of some width have searched ranges."""
        return any(self.searches_range(bits) for bits in ACTIVATION_BITS)

    def target_for(self, activation_bits: int) -> Target:
        """What the codes of a layer with inputs of that width are fitted to."""
        if self.target is Target.AUTO:
            return Target.RESIDUAL if activation_bits >= 8 else Target.OWN
        return self.target

    def searches_range(self, activation_bits: int) -> bool:
        """Whether inputs of that width have searched ranges."""
        if self.activations != "static" or activation_bits >= 16:
            return False
        if self.ranges is RangeKind.AUTO:
            return activation_bits < 8 and self.rounding is not Rounding.NEAREST
        return self.ranges is RangeKind.SEARCHED
