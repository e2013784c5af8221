"""Runs an artefact for a process that compares it: samples come in, outputs or times go out.

    python -IB serve.py KIND FOLDER REFERENCE [PACKAGE ...]

KIND is one of `RUNTIMES`. It runs with BITFRONT_RUNTIME_THREADS threads, and with one of them its
processor time counts and not the clock. No PACKAGE can be imported. Each message, either way, is
eight bytes of length, little-endian, and so many bytes of a safetensors file. The first one out
says that the model is loaded. Samples with `repeats` are timed, and with `beside` in turns with the
model at full precision, which has to lie in the folder REFERENCE then.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ARTEFACT = "artefact"
"""What the times of the artefact itself are called; a reference's have the name of its dtype."""

_LENGTH = 8
_LEAST_S = 0.5  # calls shorter than this in all are repeated more often
_MOST_TIMES = 10

Outputs = Callable[[dict[str, Any]], Any]
Load = Callable[[Path], Outputs]


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


def runtime_threads() -> int:
    """Threads that models run with; 0 leaves it to the runtime."""
    return int(os.environ.get("BITFRONT_RUNTIME_THREADS", "0"))


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


def texts_of(given: dict[str, Any]) -> list[str]:
    """The texts of a message: JSON, as bytes."""
    texts: list[str] = json.loads(bytes(given["texts"].tolist()))
    return texts


def packed(folder: Path, dtype: str = "") -> Outputs:
    """What a packed checkpoint makes of a message: logits, features, or tokens.

    Tokens are those of `texts`, or with a `limit` those of answers.

    Where it has a `dtype`, all weights are unpacked once and multiply in it, as plain modules of
    torch do.
    """
    import torch

    sys.path.insert(0, str(folder))
    model = import_module("packed_model").load(folder, unpack=bool(dtype))
    model.architecture.module.to(getattr(torch, dtype or model.card["dtype"]))
    has_no_classes = model.card["task"] == "retrieval"

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # a tensor
        if "captions" in given:
            with torch.no_grad():
                features = model.architecture.encode_texts(given["captions"])
            return torch.nn.functional.normalize(features, dim=-1)
        if "texts" in given:
            return model.architecture.tokenize(texts_of(given))
        pixels, sizes = given.get("pixels"), given.get("sizes")
        if dtype and pixels is not None:
            pixels = pixels.to(getattr(torch, dtype))
        if has_no_classes:
            return torch.nn.functional.normalize(model.encode_images(pixels).float(), dim=-1)
        if "tokens" not in given:
            return model.logits(pixels)
        if "limit" not in given:
            return model.logits(given["tokens"], pixels, sizes, int(given["kept"]))
        with without_ends(model.architecture, given):
            rows = model.generate(given["tokens"], pixels, sizes, int(given["limit"]))
        return torch.tensor(filled_up(rows))

    return outputs


def exported(folder: Path, module: str = "exported_model", **options: str) -> Outputs:
    """What exported models make of a message: the same as a packed checkpoint makes of it."""
    arrays: Any = import_module("numpy")
    sys.path.insert(0, str(folder))
    model = import_module(module).load(folder, runtime_threads(), **options)
    has_no_classes = model.card["task"] == "retrieval"

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # an array
        if "captions" in given:
            return model.encode_texts(given["captions"])
        if "texts" in given:
            return model.tokenize(texts_of(given))
        if has_no_classes:
            return model.encode_images(given["pixels"])
        if "tokens" not in given:
            return model.logits(given["pixels"])
        if "limit" not in given:
            return model.logits(given["tokens"], given.get("pixels"), int(given["kept"]))
        with without_ends(model, given):
            rows = model.generate(given["tokens"], given.get("pixels"), int(given["limit"]))
        return arrays.array(filled_up(rows))

    return outputs


def transformed(folder: Path, dtype: str = "float32") -> Outputs:
    """What a checkpoint of transformers makes of a message: the same as a packed one makes."""
    import torch

    sys.path.insert(0, str(folder))
    model = import_module("transformers_model").load(folder)
    has_no_classes = model.card["task"] == "retrieval"
    model.model.to(getattr(torch, dtype))

    def outputs(given: dict[str, Any]) -> Any:  # noqa: ANN401  # a tensor
        if "captions" in given:
            return model.encode_texts(given["captions"])
        if "texts" in given:
            return model.tokenize(texts_of(given))
        pixels = given.get("pixels")
        if pixels is not None:
            pixels = pixels.to(getattr(torch, dtype))
        if has_no_classes:
            return model.encode_images(pixels)
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


RUNTIMES: dict[str, tuple[Load, str, str]] = {
    "packed": (packed, "torch", "torch"),
    "onnx": (exported, "numpy", "onnxruntime"),
    "openvino": (exported, "numpy", "openvino"),
    "compressed-tensors": (transformed, "torch", "transformers"),
    "gguf": (in_llama_cpp, "numpy", "xllamacpp"),
}
"""How each kind of artefact is loaded, the library of its arrays, and the one that runs it."""

REFERENCES: dict[str, dict[str, Load]] = {
    "packed": {dtype: partial(packed, dtype=dtype) for dtype in ("float32", "bfloat16")},
    "onnx": {"float32": exported},
    "openvino": {"float32": exported, "bfloat16": partial(exported, dtype="bf16")},
    "compressed-tensors": {
        dtype: partial(transformed, dtype=dtype) for dtype in ("float32", "bfloat16")
    },
    "gguf": {"float16": in_llama_cpp},
}
"""What each runtime can compute the model at full precision in, from the one folder."""


def in_turns(
    models: Mapping[str, Outputs], given: dict[str, Any], repeats: int, most_s: float
) -> dict[str, list[list[float]]]:
    """Each model's seconds `(repeats, calls)`; a round before them warms up.

    There is a call for each of the message's `limits`, or one where it has none. There are more
    repeats where they take next to no time, and fewer where they take longer than `most_s`; then
    the first round may be the only one.
    """
    limits = given.pop("limits", None)
    calls = [given] if limits is None else [{**given, "limit": n} for n in limits.tolist()]
    clock = time.thread_time if runtime_threads() == 1 else time.perf_counter
    rounds: list[dict[str, list[float]]] = []
    began = time.perf_counter()
    while True:
        rounds.append({name: _seconds(of, calls, clock) for name, of in models.items()})
        took, count = time.perf_counter() - began, len(rounds) - 1
        is_short = took < _LEAST_S and count < _MOST_TIMES * repeats
        if took > most_s or (count >= repeats and not is_short):
            return {name: [one[name] for one in rounds[1:] or rounds] for name in models}


def _seconds(
    outputs: Outputs, calls: list[dict[str, Any]], clock: Callable[[], float]
) -> list[float]:
    found = []
    for call in calls:
        started = clock()
        outputs(call)
        found.append(clock() - started)
    return found


def serve(kind: str, folder: Path, reference: Path, asked: IO[bytes], told: IO[bytes]) -> None:
    """Answers messages until their stream ends."""
    load, library, runtime = RUNTIMES[kind]
    arrays: Any = import_module(library)
    files: Any = import_module(f"safetensors.{library}")
    import_module(runtime)  # its own memory is not the model's
    if library == "torch" and runtime_threads():
        arrays.set_num_threads(runtime_threads())
    make = arrays.tensor if library == "torch" else arrays.array
    before = resident_nbytes()
    models = {ARTEFACT: load(folder)}
    send(told, files.save({"resident_nbytes": make(resident_nbytes() - before)}))
    while (message := receive(asked)) is not None:
        given = files.load(message)
        repeats = int(given.pop("repeats", 0))
        if given.pop("beside", None) is not None and len(models) == 1:
            models |= {name: of(reference) for name, of in REFERENCES[kind].items()}
        if not repeats:
            send(told, files.save({"outputs": models[ARTEFACT](given)}))
            continue
        found = in_turns(models, given, repeats, float(given.pop("most_s")))
        send(told, files.save({name: make(seconds) for name, seconds in found.items()}))


if __name__ == "__main__":
    for package in sys.argv[4:]:
        sys.modules[package] = None  # type: ignore[assignment]  # then importing it raises
    messages = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no message
    serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.stdin.buffer, messages)
