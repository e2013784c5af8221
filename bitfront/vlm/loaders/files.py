"""Looks at a model's files before a library reads them: what they are, and what is missing."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bitfront.errors import InvalidModel, MissingModel
from bitfront.vlm.loaders.explained import explained

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")
"""How a checkpoint's name ends."""

Shapes = Mapping[str, tuple[int, ...]]

_LFS: Final = b"version https://git-lfs.github.com/spec"
_HEAD: Final = 512
_TOKENIZERS: Final = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"),
    "sentencepiece.bpe.model",
)
_JSON: Final = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("generation_config.json", "open_clip_config.json", "model.safetensors.index.json"),
)
_INDEX: Final = "model.safetensors.index.json"


def check_text_files(folder: Path) -> None:
    """Refuses a folder in which a configuration or a tokenizer is not what its name says.

    Raises:
        MissingModel: A file cannot be read, or is a link to nothing.
        InvalidModel: A file is no JSON object, or only stands for the real one.
    """
    for name in (*_JSON, *_TOKENIZERS):
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        _refuse_stand_in(path)
        if name in _JSON:
            read_json(path)


def read_json(path: Path) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
        MissingModel: It cannot be read.
        InvalidModel: It holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingModel(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(
            f"{path} is not valid JSON, perhaps since it is cut off ({error}): fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path} holds no JSON object, but a {type(content).__name__}")
    return content


def check_safetensors_folder(folder: Path) -> None:
    """Refuses a folder of transformers whose weights are incomplete or damaged.

    Raises:
        MissingModel: There are no weights as safetensors, or one of their files is missing.
        InvalidModel: A file is damaged, or only stands for the real one.
    """
    for path in safetensors_files(folder):
        check_weights_file(path)


def safetensors_files(folder: Path) -> Iterator[Path]:
    """The files that hold a folder's weights.

    Raises:
        MissingModel: There are none, or one is missing.
    """
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.exists() or whole.is_symlink():
        yield whole
        return
    if not index.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES)
        found = f"only {others[0]}" if others else "no weights"
        raise MissingModel(
            f"the folder {folder} has {found}, but must have model.safetensors: weights in other "
            "forms are not read, so convert them with safetensors.torch.save_file"
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InvalidModel(f"{index} names no weights: fetch it again")
    for name in sorted({str(name) for name in places.values()}):
        if not (folder / name).is_file():
            raise MissingModel(
                f"the folder {folder} lacks {name}, which {_INDEX} names: fetch it again"
            )
        yield folder / name


def check_tokenizer_files(folder: Path) -> None:
    """Refuses a folder without a tokenizer: a library would invent an empty one.

    Raises:
        MissingModel: There is none.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise MissingModel(
            f"the folder {folder} has no tokenizer: copy tokenizer.json, or what the tokenizer "
            "was saved as, from where the weights came from"
        )


def check_weights_file(path: Path) -> None:
    """Refuses a file that cannot be a checkpoint, whoever wrote it.

    Raises:
        MissingModel: It cannot be read, or is a link to nothing.
        InvalidModel: It is cut off, holds code, or only stands for the weights.
    """
    _refuse_stand_in(path)
    if path.suffix == ".safetensors":
        safetensors_shapes(path)
        return
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK" and not zipfile.is_zipfile(path):
        raise InvalidModel(f"{path} is cut off: fetch it again")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
            raise InvalidModel(
                f"{path} is a TorchScript archive, which holds code: read it with "
                "torch.jit.load and save its state_dict with safetensors.torch.save_file"
            )


def _refuse_stand_in(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        reason = "it is a link to nothing" if path.is_symlink() else error.strerror
        raise MissingModel(f"{path} cannot be read: {reason}") from error
    if size == 0:
        raise InvalidModel(f"{path} is empty: fetch it again")
    if head.startswith(_LFS):
        raise InvalidModel(
            f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull' in its folder"
        )
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise InvalidModel(f"{path} is a web page, not a model's file: download the file itself")


def safetensors_shapes(path: Path) -> Shapes:
    """The shapes of a safetensors file's tensors, from its header.

    Raises:
        InvalidModel: The file is no safetensors file, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise InvalidModel(
                f"{path} cannot be read: it is not a safetensors file, or is cut off; fetch it "
                "again"
            )
        header = file.read(length)
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidModel(
            f"{path} cannot be read: its header is damaged; fetch it again"
        ) from error
    if size < 8 + length + end:
        raise InvalidModel(
            f"{path} cannot be read: it is cut off, {size} of {8 + length + end} bytes are there; "
            "fetch it again"
        )
    if not shapes:
        raise InvalidModel(f"{path} holds no weights")
    return shapes


def checkpoint_shapes(path: Path) -> Shapes:
    """The shapes of a checkpoint's tensors by name, whether safetensors or torch wrote it.

    The tensors of a torch file are mapped, not read.

    Raises:
        MissingModel: It cannot be read.
        InvalidModel: It is damaged, holds more than tensors, or none.
    """
    check_weights_file(path)
    if path.suffix == ".safetensors":
        return safetensors_shapes(path)
    with explained("torch", f"read the checkpoint {path}"):
        content = _load_mapped(path)
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InvalidModel(
            f"{path} holds a {type(content).__name__}, not the state dict of a model"
        )
    if not content:
        raise InvalidModel(f"{path} holds no weights: its state dict is empty")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InvalidModel(
                f"{path} holds no state dict of a model: its entry {name!r} is a "
                f"{type(value).__name__}, not a tensor"
            )
    return {
        str(name).removeprefix("module."): tuple(value.shape) for name, value in content.items()
    }


def _load_mapped(path: Path) -> object:
    content: object = torch.load(
        path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
    )
    return content
