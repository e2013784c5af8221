"""A checkpoint in the format compressed-tensors: packed codes that transformers and vLLM read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from bitfront.errors import InvalidModel
from bitfront.formats import ScaleType
from bitfront.precision import Precision
from bitfront.quant.floats import levels_of_codes
from bitfront.quant.packing import pack_codes, unpack_codes
from bitfront.targets import COMPRESSED_TENSORS, Ranges

_PACKED: Final = "pack-quantized"
_BYTES: Final = "int-quantized"
_VALUES: Final = "dense"
_FLOATS: Final = {
    "fp8_e4m3": "float-quantized",
    "mxfp8_e4m3": "mxfp8-quantized",
    "mxfp6_e2m3": "mxfp6-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_MIXED: Final = "mixed-precision"
_BYTE: Final = 8

Names = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a checkpoint holds.

    Attributes:
        tensors: By name.
        precisions: Of the packed layers and those whose inputs are rounded, by the path of their
            module; a weight whose values are stored counts as one of 16 bits.
        unpacked: Layers whose codes have no packed form: their values are stored.
    """

    tensors: dict[str, Tensor]
    precisions: dict[str, Precision]
    unpacked: list[str]


def refuse_other_formats(
    plan: Mapping[str, Precision], *, symmetric: bool, ranges: Ranges, recovery: bool
) -> None:
    """Refuses what the format cannot say.

    Raises:
        InvalidModel: Weights have zero points, inputs are rounded in another way, or there is a
            recovery.
    """
    if recovery:
        raise InvalidModel(
            "compressed-tensors has no place for a recovery's prompt and adapter: choose a trial "
            "without one, or build it with --to packed"
        )
    integers = [one for one in plan.values() if one.quantizes_weight and not one.format]
    if integers and not symmetric:
        raise InvalidModel(
            "compressed-tensors has whole zero points, which transformers does not load beside "
            "packed codes: search with quantizer.scheme: symmetric, or build it with --to packed"
        )
    rounded = [name for name, one in plan.items() if one.quantizes_input]
    if rounded and ranges not in COMPRESSED_TENSORS.ranges:
        raise InvalidModel(
            f"the inputs of {len(rounded)} layers, first {rounded[0]}, have {ranges} ranges, which "
            "compressed-tensors cannot say: search with quantizer.activations: dynamic_symmetric "
            "or space.activation_bits: [16], or build it with --to packed"
        )


def held_tensors(
    module: nn.Module,
    entries: Mapping[str, Mapping[str, object]],
    tensors: Mapping[str, Tensor],
    names: Names,
) -> Held:
    """The tensors of a checkpoint, under the names that transformers has for them.

    Args:
        module: The model as transformers builds it.
        entries: Its layers, as a card of a packed checkpoint has them.
        tensors: Those of the packed checkpoint.
        names: What transformers calls a tensor; several are its rows in turn.
    """
    held = Held({}, {}, [])
    layers = {key for entry in entries.values() for key in _names(entry)}
    for name, tensor in tensors.items():
        if name not in layers:
            theirs = names(name)
            held.tensors.update(zip(theirs, _rows(tensor, len(theirs)), strict=True))
    linears = {path for path, part in module.named_modules() if type(part) is nn.Linear}
    for name, entry in entries.items():
        own = {key.removeprefix(f"{name}."): tensors[key] for key in _names(entry)}
        paths, shape = entry["modules"], entry["shape"]
        bits, inputs, group = (entry[name] for name in ("weight_bits", "activation_bits", "group"))
        assert isinstance(paths, list)
        assert isinstance(shape, list)
        assert isinstance(bits, int)
        assert isinstance(inputs, int)
        assert isinstance(group, int)
        form = entry["format"]
        assert isinstance(form, str)
        precision = Precision(bits, inputs, group, format=form)
        theirs = names(f"{paths[0]}.weight")
        if precision.quantizes_input:
            multiplying = [place for path in paths for place in names(f"{path}.weight")]
            known = {place.removesuffix(".weight") for place in multiplying} & linears
            held.precisions.update(dict.fromkeys(known, Precision(16, inputs)))
        rows, columns = shape[0], math.prod(shape[1:])
        if not precision.quantizes_weight:
            weights = _rows(own["weight"].view(shape), len(theirs))
            held.tensors.update(zip(theirs, weights, strict=True))
            continue
        codes = unpack_codes(own["codes"], bits, rows * columns).view(rows, columns)
        is_packed = len(paths) == 1 and columns % (group or columns) == 0
        for place, code, scale in zip(
            theirs, _rows(codes, len(theirs)), _rows(own["scale"], len(theirs)), strict=True
        ):
            path = place.removesuffix(".weight")
            part = _Part(code, scale, own.get("tensor_scale"), precision)
            if is_packed and path in linears:
                held.precisions[path] = precision
                held.tensors.update({f"{path}.{key}": one for key, one in part.packed().items()})
            else:
                held.tensors[place] = part.values().view(len(code), *shape[1:])
        if f"{theirs[0].removesuffix('.weight')}.weight_scale" not in held.tensors:
            held.unpacked.append(name)
    return held


def _names(entry: Mapping[str, object]) -> list[str]:
    names = entry["tensors"]
    assert isinstance(names, list)
    return names


def _rows(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """The tensor in so many parts of as many rows."""
    return tensor.chunk(count) if count > 1 else [tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The codes of rows of a weight.

    Attributes:
        codes: `(rows, columns)`, as a packed checkpoint has them.
        scale: `(rows, groups)`, as it is stored there.
        tensor_scale: What multiplies every scale; None for most formats.
        precision: Of the layer.
    """

    codes: Tensor
    scale: Tensor
    tensor_scale: Tensor | None
    precision: Precision

    @property
    def signed(self) -> Tensor:
        """Integer codes around zero, int8."""
        signed: Tensor = self.codes.to(torch.int16) - 2 ** (self.precision.weight_bits - 1)
        return signed.to(torch.int8)

    def values(self) -> Tensor:
        """The weights, `(rows, columns)` float32."""
        group, form = self.precision.group, self.precision.form
        scale = self.scale.float()
        if self.tensor_scale is not None:
            scale = scale * self.tensor_scale
        if group:
            scale = scale.repeat_interleave(group, dim=1)[:, : self.codes.shape[1]]
        points = self.signed.float() if form is None else levels_of_codes(self.codes, form)
        return points * scale

    def packed(self) -> dict[str, Tensor]:
        """What a checkpoint holds of them, by the name of the parameter."""
        if self.precision.form is not None:
            return self._floats()
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        scale = self.scale.float().contiguous()
        if _format(self.precision) == _BYTES:
            return {"weight": self.signed, "weight_scale": scale}
        return {
            "weight_packed": pack_to_int32(self.signed, self.precision.weight_bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor(self.codes.shape),
        }

    def _floats(self) -> dict[str, Tensor]:
        form = self.precision.form
        assert form is not None
        scale = self.scale
        if form.scale is ScaleType.E8M0:
            scale = scale.view(torch.uint8)
        elif form.scale is ScaleType.FLOAT16:
            scale = scale.float()
        found = {"weight_scale": scale.contiguous()}
        if self.tensor_scale is not None:  # there its reciprocal divides
            found["weight_global_scale"] = self.tensor_scale.reciprocal().view(1)
        if form.bits == _BYTE:
            return found | {"weight": self.codes.view(torch.float8_e4m3fn)}
        packed = pack_codes(self.codes, form.bits)
        return found | {"weight_packed": packed.view(len(self.codes), -1)}


def _format(precision: Precision) -> str:
    """How the codes of a layer lie; in bytes where vLLM wants them beside rounded inputs."""
    if not precision.quantizes_weight:
        return _VALUES
    if precision.format:
        return _FLOATS[precision.format]
    return _BYTES if _has_kernel_of_bytes(precision) else _PACKED


def _has_kernel_of_bytes(precision: Precision) -> bool:
    """Whether vLLM multiplies bytes with bytes."""
    widths = precision.weight_bits, precision.activation_bits
    return widths == (_BYTE, _BYTE) and not precision.group and not precision.format


def quantization_config(
    module: nn.Module, precisions: Mapping[str, Precision]
) -> dict[str, object]:
    """What `config.json` says of the layers; groups are named in the order they are read."""
    by_form: dict[Precision, list[str]] = {}
    for path, one in precisions.items():
        by_form.setdefault(one, []).append(path)
    digits = len(str(len(by_form)))
    groups = {
        f"group_{number:0{digits}d}": {
            "targets": paths,
            "weights": _weights(one),
            "input_activations": _inputs(one),
            "format": _format(one),
        }
        for number, (one, paths) in enumerate(sorted(by_form.items(), key=lambda each: each[0]))
    }
    formats = {_format(one) for one in by_form} - {_VALUES}
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": _MIXED if len(formats) > 1 else next(iter(formats), _VALUES),
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linears if name not in precisions],
    }


def _weights(precision: Precision) -> dict[str, object] | None:
    if not precision.quantizes_weight:
        return None
    further: dict[str, object] = {"group_size": precision.group} if precision.group else {}
    strategy, form = "group" if precision.group else "channel", precision.form
    if form is not None and form.scales_tensor:
        strategy = "tensor_group"
    if form is not None and form.scale is ScaleType.E8M0:
        further["scale_dtype"] = "torch.uint8"
    elif form is not None and form.scale is ScaleType.E4M3:
        further["scale_dtype"] = "torch.float8_e4m3fn"
    return {
        "num_bits": precision.weight_bits,
        "type": "int" if form is None else "float",
        "symmetric": True,
        "strategy": strategy,
        "dynamic": False,
        **further,
    }


def _inputs(precision: Precision) -> dict[str, object] | None:
    if not precision.quantizes_input:
        return None
    return {
        "num_bits": precision.activation_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }


def changes(held: Held) -> list[str]:
    """What the checkpoint holds in another way than the trial, in sentences."""
    found = []
    if held.unpacked:
        found.append(
            f"the codes of {len(held.unpacked)} layers, first {held.unpacked[0]}, have no packed "
            "form there (embeddings, convolutions, tied heads, groups that do not divide the "
            "columns): their values are stored in 32 bits; space.keep: 16 for them saves half"
        )
    if any(one.form is not None for one in held.precisions.values()):
        found.append(
            "transformers unpacks number formats to bfloat16, which holds the weights, and a bare "
            "forward then wants the whole model in dtype=torch.bfloat16; transformers_model.py "
            "multiplies in float32, as the trial did"
        )
    rounded = [one for one in held.precisions.values() if one.quantizes_input]
    if rounded:
        others = sum(not _has_kernel_of_bytes(one) for one in rounded)
        only = (
            f", and loads no other: {others} of {len(rounded)} layers are others" if others else ""
        )
        found.append(
            "vLLM, where this was not run, rounds inputs by 127 steps to a token's largest value, "
            "and transformers, as the trial, by 127.5; it multiplies them with weights of 8 bits "
            f"that have one scale a row{only}"
        )
    mixed = sorted(_mixed(held.precisions))
    if mixed:
        found.append(
            f"layers that vLLM multiplies as one matrix have several precisions in {len(mixed)} "
            f"places, first {mixed[0]}: transformers loads that, vLLM does not"
        )
    return found


def _mixed(precisions: Mapping[str, Precision]) -> set[str]:
    """The places where fused layers differ, as their modules' names without the last part."""
    found = set()
    for fused in COMPRESSED_TENSORS.fused:
        together: dict[str, set[Precision | None]] = {}
        for path in precisions:
            parent, _, last = path.rpartition(".")
            if last in fused:
                together[parent] = {precisions.get(f"{parent}.{other}") for other in fused}
        found |= {parent for parent, several in together.items() if len(several) > 1}
    return found
