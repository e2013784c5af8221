"""Runs an artefact for a process that compares it: samples come in, outputs go out.

    python -IB serve.py KIND FOLDER [PACKAGE ...]

KIND is one of `RUNTIMES`. Exported models run with BITFRONT_RUNTIME_THREADS threads. No PACKAGE
can be imported. Each message, either way, is eight bytes of length, little-endian, and so many
bytes of a safetensors file. The first one out says that the model is loaded.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_LENGTH = 8

Outputs = Callable[[dict[str, Any]], Any]


def send(stream: IO[bytes], content: bytes) -> None:
    """Writes one message."""
    stream.write(len(content).to_bytes(_LENGTH, "little") + content)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Reads one message; None where there is none any more."""
    length = stream.read(_LENGTH)
    if len(length) < _LENGTH:
        return None
    return stream.read(int.from_bytes(length, "little"))


def resident_nbytes() -> int:
    """The physical memory that this process holds, file pages left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


@contextmanager
def without_ends(model: Any, given: dict[str, Any]) -> Iterator[None]:  # noqa: ANN401  # what has ends
    """Lets no token end an answer, where the message is `endless`: as many come as are asked."""
    ends = model.ends
    if "endless" in given:
        model.ends = frozenset()
    try:
        yield
    finally:
        model.ends = ends


def filled_up(rows: list[list[int]]) -> list[list[int]]:
    """Rows of one length: those that end early are filled up with -1."""
    longest = max(map(len, rows))
    return [row + [-1] * (longest - len(row)) for row in rows]


def packed(folder: Path) -> Outputs:
    """What a packed checkpoint makes of a message: logits, features, or with a `limit` tokens."""
    import torch

    sys.path.insert(0, str(folder))
    model = import_module("packed_model").load(folder)

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # a tensor
        if "captions" in given:
            with torch.no_grad():
                features = model.architecture.encode_texts(given["captions"])
            return torch.nn.functional.normalize(features, dim=-1)
        if "tokens" not in given:
            return model.logits(given["pixels"])
        pixels, sizes = given.get("pixels"), given.get("sizes")
        if "limit" not in given:
            return model.logits(given["tokens"], pixels, sizes, int(given["kept"]))
        with without_ends(model.architecture, given):
            rows = model.generate(given["tokens"], pixels, sizes, int(given["limit"]))
        return torch.tensor(filled_up(rows))

    return outputs


def exported(folder: Path, module: str = "exported_model") -> Outputs:
    """What exported models make of a message: the same as a packed checkpoint makes of it."""
    arrays: Any = import_module("numpy")
    sys.path.insert(0, str(folder))
    threads = int(os.environ.get("BITFRONT_RUNTIME_THREADS", "0"))
    model = import_module(module).load(folder, threads)

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # an array
        if "captions" in given:
            return model.encode_texts(given["captions"])
        if "tokens" not in given:
            return model.logits(given["pixels"])
        if "limit" not in given:
            return model.logits(given["tokens"], given.get("pixels"), int(given["kept"]))
        with without_ends(model, given):
            rows = model.generate(given["tokens"], given.get("pixels"), int(given["limit"]))
        return arrays.array(filled_up(rows))

    return outputs


def transformed(folder: Path) -> Outputs:
    """What a checkpoint of transformers makes of a message: the same as a packed one makes."""
    import torch

    sys.path.insert(0, str(folder))
    model = import_module("transformers_model").load(folder)

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # a tensor
        if "captions" in given:
            return model.encode_texts(given["captions"])
        pixels = given.get("pixels")
        if "tokens" not in given:
            return model.logits(pixels)
        if "limit" not in given:
            return model.logits(given["tokens"], pixels, int(given["kept"])).contiguous()
        with without_ends(model, given):
            rows = model.generate(given["tokens"], pixels, int(given["limit"]))
        return torch.tensor(filled_up(rows))

    return outputs


def in_llama_cpp(folder: Path) -> Outputs:
    """What gguf files make of a message: the same as a packed checkpoint makes of it."""
    return exported(folder, "gguf_model")


RUNTIMES = {
    "packed": (packed, "torch", "torch"),
    "onnx": (exported, "numpy", "onnxruntime"),
    "openvino": (exported, "numpy", "openvino"),
    "compressed-tensors": (transformed, "torch", "transformers"),
    "gguf": (in_llama_cpp, "numpy", "xllamacpp"),
}
"""How each kind of artefact is loaded, the library of its arrays, and the one that runs it."""


def serve(kind: str, folder: Path, asked: IO[bytes], told: IO[bytes]) -> None:
    """Answers messages until their stream ends."""
    load, library, runtime = RUNTIMES[kind]
    arrays: Any = import_module(library)
    files: Any = import_module(f"safetensors.{library}")
    import_module(runtime)  # its own memory is not the model's
    make = arrays.tensor if library == "torch" else arrays.array
    before = resident_nbytes()
    outputs = load(folder)
    send(told, files.save({"resident_nbytes": make(resident_nbytes() - before)}))
    while (message := receive(asked)) is not None:
        given = files.load(message)
        times, found = [], None
        for _ in range(int(given.pop("repeats", 1))):
            started = time.perf_counter()
            found = outputs(given)
            times.append(time.perf_counter() - started)
        send(told, files.save({"outputs": found, "seconds": make(times)}))


if __name__ == "__main__":
    for package in sys.argv[3:]:
        sys.modules[package] = None  # type: ignore[assignment]  # then importing it raises
    messages = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no message
    serve(sys.argv[1], Path(sys.argv[2]), sys.stdin.buffer, messages)
