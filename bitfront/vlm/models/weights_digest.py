"""The identity of a model: a hash of its architecture and of every weight."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

# Where a model came from and how it is run now say nothing about what it computes.
_PROVENANCE = frozenset({"name_or_path", "training", "grad_checkpointing", "warnings_issued"})


def model_identity(model: nn.Module, tensors: Iterable[tuple[str, Tensor]] | None = None) -> str:
    """The SHA-256 of the model's modules with their settings, and of its state dict.

    Args:
        model: The model.
        tensors: Its state dict in order of the names, where the model does not have it.

    Every tensor enters with name, dtype, shape and bytes (a meta tensor has no bytes), so
    changed weights under the same name have another identity.
    """
    sha = hashlib.sha256()
    sha.update(json.dumps(list(_settings(model))).encode())
    for name, tensor in sorted(model.state_dict().items()) if tensors is None else tensors:
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            sha.update(_content(tensor))
    return sha.hexdigest()


def _settings(model: nn.Module) -> Iterator[list[object]]:
    """Every module's path, class, and public attributes that are plain values."""
    for path, module in model.named_modules():
        kind = type(module)
        values = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and key not in _PROVENANCE and _is_plain(value)
        }
        yield [path, f"{kind.__module__}.{kind.__qualname__}", sorted(values.items())]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _content(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
