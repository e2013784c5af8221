"""A checkpoint in the format compressed-tensors: packed codes that transformers and vLLM read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from bitfront.errors import InvalidModel
from bitfront.precision import Precision
from bitfront.quant.packing import unpack_codes
from bitfront.targets import COMPRESSED_TENSORS, Ranges

_PACKED: Final = "pack-quantized"
_BYTES: Final = "int-quantized"
_VALUES: Final = "dense"
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
    quantized = [one for one in plan.values() if one.quantizes_weight]
    if quantized and not symmetric:
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
        precision, theirs = Precision(bits, inputs, group), names(f"{paths[0]}.weight")
        if precision.quantizes_input:
            multiplying = [place for path in paths for place in names(f"{path}.weight")]
            known = {place.removesuffix(".weight") for place in multiplying} & linears
            held.precisions.update(dict.fromkeys(known, Precision(16, inputs)))
        rows, columns = shape[0], math.prod(shape[1:])
        if not precision.quantizes_weight:
            weights = _rows(own["weight"].view(shape), len(theirs))
            held.tensors.update(zip(theirs, weights, strict=True))
            continue
        codes, scales = _codes(own, bits, rows, columns), own["scale"].float()
        is_packed = len(paths) == 1 and columns % (group or columns) == 0
        for place, code, scale in zip(
            theirs, _rows(codes, len(theirs)), _rows(scales, len(theirs)), strict=True
        ):
            path = place.removesuffix(".weight")
            if is_packed and path in linears:
                held.precisions[path] = precision
                held.tensors.update(_coded(path, code, scale, precision))
            else:
                values = _values(code, scale, group)
                held.tensors[place] = values.view(len(code), *shape[1:])
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


def _codes(own: Mapping[str, Tensor], bits: int, rows: int, columns: int) -> Tensor:
    """Codes around zero `(rows, columns)`, int8."""
    codes = unpack_codes(own["codes"], bits, rows * columns).view(rows, columns)
    signed: Tensor = codes.to(torch.int16) - 2 ** (bits - 1)
    return signed.to(torch.int8)


def _format(precision: Precision) -> str:
    """How the codes of a layer lie; in bytes where vLLM wants them beside rounded inputs."""
    if not precision.quantizes_weight:
        return _VALUES
    return _BYTES if _has_kernel_of_bytes(precision) else _PACKED


def _has_kernel_of_bytes(precision: Precision) -> bool:
    """Whether vLLM multiplies bytes with bytes."""
    widths = precision.weight_bits, precision.activation_bits
    return widths == (_BYTE, _BYTE) and not precision.group


def _coded(path: str, codes: Tensor, scale: Tensor, precision: Precision) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if _format(precision) == _BYTES:
        return {f"{path}.weight": codes, f"{path}.weight_scale": scale.contiguous()}
    return {
        f"{path}.weight_packed": pack_to_int32(codes, precision.weight_bits),
        f"{path}.weight_scale": scale.contiguous(),
        f"{path}.weight_shape": torch.tensor(codes.shape),
    }


def _values(codes: Tensor, scale: Tensor, group: int) -> Tensor:
    if group:
        scale = scale.repeat_interleave(group, dim=1)[:, : codes.shape[1]]
    return codes.float() * scale


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
    grouped: dict[str, object] = {"group_size": precision.group} if precision.group else {}
    return {
        "num_bits": precision.weight_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if precision.group else "channel",
        "dynamic": False,
        **grouped,
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
