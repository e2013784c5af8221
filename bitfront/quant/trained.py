"""What a checkpoint holds of a layer, in training: it computes with exactly what would be stored.

Values are rounded as they are stored; gradients go straight through the rounding to latents in
units of their own, so that one learning rate fits every layer.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from bitfront.quant.grid import saturated, storable_scale, storable_zero
from bitfront.quant.inputs import InputQuantizer, InputRange, fake_quantize_input
from bitfront.quant.weights import QuantizedWeight

# How far from its code's centre a weight's latent may start: half a code is the next one's.
_WITHIN = 0.3


class TrainedWeight(nn.Module):
    """A quantized weight whose scales and zero points are trained, and where asked its codes.

    Attributes:
        growth: `(rows, groups)`, the logarithm of what each scale is multiplied with.
        shift: `(rows, groups)`, what is added to each zero point, in codes; None if symmetric.
        codes: `(rows, columns)`, the codes before rounding; None where they stay.
    """

    def __init__(
        self,
        start: QuantizedWeight,
        weight: Float[Tensor, "rows columns"] | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """Starts where rounding ended.

        Args:
            start: The weight as it was rounded.
            weight: In full precision, where the codes are trained: a latent starts on the side of
                its code that the weight lies on. None leaves the codes as they are.
            whole: Zero points are codes.
        """
        super().__init__()
        self._start, self._whole = start, whole
        self._scale = start.scale.detach().float().clone()
        self._zero = start.zero_codes.clone()
        self._codes = start.codes.detach().float()
        self.growth = nn.Parameter(torch.zeros_like(self._scale))
        self.shift = None if start.zero is None else nn.Parameter(torch.zeros_like(self._zero))
        self.codes: nn.Parameter | None = None
        if weight is not None:
            exact = weight.detach().float() / self._wide(self._scale) + self._wide(self._zero)
            off = (exact - self._codes).clamp(-_WITHIN, _WITHIN)
            self.codes = nn.Parameter(self._codes + off)

    def forward(self) -> Float32[Tensor, "rows columns"]:
        """The weight that a checkpoint would give back now."""
        codes, scale, zero = self._rounded()
        return (codes - self._wide(zero)) * self._wide(scale)

    def stored(self) -> QuantizedWeight:
        """The weight as a checkpoint would hold it now."""
        with torch.no_grad():
            codes, scale, zero = self._rounded()
        start, steps = self._start, 2 ** (8 - self._start.bits)
        zeros = None if start.zero is None else (zero * steps).to(torch.uint8)
        return QuantizedWeight(codes.to(torch.uint8), scale.half(), zeros, start.bits, start.group)

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        bits = self._start.bits
        scale, zero, codes = self._scale * self.growth.exp(), self._zero, self._codes
        scale = _straight_through(scale, storable_scale(scale.detach()))
        if self.shift is not None:
            zero = zero + self.shift
            zero = _straight_through(zero, storable_zero(zero.detach(), bits, whole=self._whole))
        if self.codes is not None:
            rounded = self.codes.detach().round().clamp(0, 2**bits - 1)
            codes = _straight_through(self.codes, rounded)
        return codes, scale, zero

    def _wide(self, groups: Float[Tensor, "rows groups"]) -> Float[Tensor, "rows columns"]:
        """A value for every column, from one for its group."""
        columns = self._codes.shape[1]
        return groups.repeat_interleave(self._start.group or columns, dim=1)[:, :columns]


class TrainedRange(nn.Module):
    """A static input range whose two ends are trained.

    Attributes:
        ends: `(2,)`, how far the lower and the upper end moved, in widths of the first range.
        is_grouped: False: all columns share the range.
    """

    is_grouped = False

    def __init__(self, start: InputQuantizer, device: torch.device) -> None:
        """Takes a quantizer with a static range."""
        super().__init__()
        assert start.range is not None
        self._bits = start.bits
        ends = [min(start.range.low, 0.0), max(start.range.high, 0.0)]
        self._ends = torch.tensor(ends, device=device)
        self.ends = nn.Parameter(torch.zeros(2, device=device))

    def forward(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input on the levels that a checkpoint would give now."""
        low, high = self._moved()
        return fake_quantize_input(inputs, low, high, self._bits)

    def stored(self) -> InputQuantizer:
        """The quantizer as a checkpoint would hold it now; its range holds zero."""
        low, high = self._moved().detach().tolist()
        return InputQuantizer(self._bits, InputRange(min(low, 0.0), max(high, 0.0)))

    def _moved(self) -> Float[Tensor, " 2"]:
        return self._ends + self.ends * (self._ends[1] - self._ends[0])


class TrainedVector(nn.Module):
    """The weight of a norm or a bias, which a checkpoint holds in 16 bits.

    Attributes:
        values: `(n,)` float32, before rounding.
    """

    def __init__(self, start: Float[Tensor, " n"]) -> None:
        super().__init__()
        is_narrow = start.dtype in (torch.float16, torch.bfloat16)
        self._stored = start.dtype if is_narrow else torch.float16
        self._dtype = start.dtype
        self.values = nn.Parameter(start.detach().float().clone())

    def forward(self) -> Float[Tensor, " n"]:
        """The values that a checkpoint would give back now."""
        rounded = self.stored().float()
        return _straight_through(self.values, rounded).to(self._dtype)

    def stored(self) -> Float[Tensor, " n"]:
        """The values as a checkpoint would hold them now."""
        return saturated(self.values.detach(), self._stored)


def _straight_through(latent: Tensor, rounded: Tensor) -> Tensor:
    """The value is `rounded` to the bit, the gradient is the latent's."""
    return rounded + (latent - latent.detach())
