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
from bitfront.targets import COMPRESSED_TENSORS

_FORMAT: Final = "pack-quantized"

Names = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a checkpoint holds.

    Attributes:
        tensors: By name.
        precisions: Of the packed layers, by the path of their module.
        unpacked: Layers whose codes have no packed form: their values are stored.
    """

    tensors: dict[str, Tensor]
    precisions: dict[str, Precision]
    unpacked: list[str]


def refuse_other_formats(plan: Mapping[str, Precision], *, symmetric: bool, recovery: bool) -> None:
    """Refuses what the format cannot say.

    Raises:
        InvalidModel: Weights have zero points, inputs are rounded, or there is a recovery.
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
    if rounded:
        raise InvalidModel(
            f"the inputs of {len(rounded)} layers, first {rounded[0]}, are rounded in a way that "
            "compressed-tensors cannot say: search with space.activation_bits: [16], or build it "
            "with --to packed"
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
        bits, group = entry["weight_bits"], entry["group"]
        assert isinstance(paths, list)
        assert isinstance(shape, list)
        assert isinstance(bits, int)
        assert isinstance(group, int)
        precision, theirs = Precision(bits, 16, group), names(f"{paths[0]}.weight")
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
                held.tensors.update(_packed(path, code, scale, bits))
            else:
                values = _values(code, scale, group)
                held.tensors[place] = values.view(len(code), *shape[1:])
        if not held.precisions.keys() & {place.removesuffix(".weight") for place in theirs}:
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


def _packed(path: str, codes: Tensor, scale: Tensor, bits: int) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        f"{path}.weight_packed": pack_to_int32(codes, bits),
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
    """What `config.json` says of the packed layers; groups are named in the order they are read."""
    by_form: dict[tuple[int, int], list[str]] = {}
    for path, one in precisions.items():
        by_form.setdefault((one.weight_bits, one.group), []).append(path)
    groups = {}
    for number, ((bits, group), paths) in enumerate(sorted(by_form.items())):
        weights: dict[str, object] = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if group else "channel",
            "dynamic": False,
        }
        if group:
            weights["group_size"] = group
        key = f"group_{number:0{len(str(len(by_form)))}d}"
        groups[key] = {"targets": paths, "weights": weights, "format": _FORMAT}
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linears if name not in precisions],
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
