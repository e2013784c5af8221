"""Runs an artefact for a process that compares it: samples come in, outputs go out.

    python -IB serve.py FOLDER [PACKAGE ...]

No PACKAGE can be imported. Each message, either way, is eight bytes of length, little-endian, and
so many bytes of a safetensors file. The first one out says that the model is loaded.
"""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

_LENGTH = 8


def send(stream: IO[bytes], tensors: dict[str, Tensor]) -> None:
    """Writes one message."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    stream.write(len(content).to_bytes(_LENGTH, "little") + content)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Tensor] | None:
    """Reads one message; None where there is none any more."""
    length = stream.read(_LENGTH)
    if len(length) < _LENGTH:
        return None
    return load(stream.read(int.from_bytes(length, "little")))


def resident_nbytes() -> int:
    """The physical memory that this process holds, file pages left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


def outputs(model: Any, given: dict[str, Tensor]) -> Tensor:  # noqa: ANN401  # the loader's
    """What a model makes of a message: logits, or with a `limit` the greedy tokens.

    Tokens of rows that end early are filled up with -1.
    """
    if "tokens" not in given:
        logits: Tensor = model.logits(given["pixels"])
        return logits
    pixels, sizes = given.get("pixels"), given.get("sizes")
    if "limit" in given:
        rows = model.generate(given["tokens"], pixels, sizes, int(given["limit"]))
        longest = max(map(len, rows))
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    found: Tensor = model.logits(given["tokens"], pixels, sizes, int(given["kept"]))
    return found


def serve(folder: Path, asked: IO[bytes], told: IO[bytes]) -> None:
    """Answers messages until their stream ends."""
    before = resident_nbytes()
    sys.path.insert(0, str(folder))
    model = import_module("packed_model").load(folder)
    send(told, {"resident_nbytes": torch.tensor(resident_nbytes() - before)})
    while (given := receive(asked)) is not None:
        times = []
        found = torch.empty(0)
        for _ in range(int(given.pop("repeats", torch.tensor(1)))):
            started = time.perf_counter()
            found = outputs(model, given)
            times.append(time.perf_counter() - started)
        send(told, {"outputs": found.cpu(), "seconds": torch.tensor(times)})


if __name__ == "__main__":
    for package in sys.argv[2:]:
        sys.modules[package] = None  # type: ignore[assignment]  # then importing it raises
    messages = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no message
    serve(Path(sys.argv[1]), sys.stdin.buffer, messages)
