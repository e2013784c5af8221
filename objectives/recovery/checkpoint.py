"""Checkpoints of a training as it goes: safetensors, with JSON and a checksum in the header."""

import hashlib
import json
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bitfront.errors import InvalidModel
from bitfront.files import SharedPath, read_whole, write_whole
from bitfront.plan import canonical_json


def write_checkpoint(
    path: SharedPath,
    form: str,
    identity: str,
    content: Mapping[str, object],
    tensors: Mapping[str, Tensor],
) -> None:
    """Puts a checkpoint in the place of the one before, whole or not at all.

    Args:
        path: The file; its folder is made.
        form: What kind of checkpoint it is, with its version.
        identity: The hash of all that the state depends on.
        content: Plain JSON content.
        tensors: On the CPU.
    """
    header = {
        **content,
        "identity": identity,
        "checksum": _checksum(identity, content, tensors),
    }
    write_whole(path, save(dict(tensors), {form: canonical_json(header)}))


def read_checkpoint(
    path: SharedPath, form: str, identity: str
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The content and the tensors of a checkpoint.

    Raises:
        InvalidModel: It is damaged, not of that form, or a checkpoint of something else.
    """
    try:
        saved = read_whole(path)
        header = json.loads(_metadata(saved)[form])
        tensors = load(saved)
        found, checksum = header.pop("identity"), header.pop("checksum")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"{path} is not a checkpoint of the form {form}, or is damaged: "
            "remove it, or give another path"
        ) from error
    if checksum != _checksum(found, header, tensors):
        raise InvalidModel(
            f"the checkpoint {path} is damaged, its checksum is wrong: remove it to start again"
        )
    if found != identity:
        raise InvalidModel(
            f"the checkpoint {path} belongs to another model, other samples or other settings: "
            "remove it, or give another path"
        )
    return header, tensors


def _metadata(saved: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: JSON after its length in 8 bytes."""
    length = int.from_bytes(saved[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(saved[8 : 8 + length])
    return header["__metadata__"]


def _checksum(identity: str, content: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a checkpoint holds."""
    sha = hashlib.sha256(canonical_json([identity, dict(content)]).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()
