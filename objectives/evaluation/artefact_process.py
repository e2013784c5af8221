"""An artefact in a process of its own, where nothing of bitfront can be imported."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import IO, Final, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.runtime.serve import ARTEFACT, REFERENCES, receive, send
from bitfront.errors import FailedBuild

REPEATS: Final = 7
_MOST_S: Final = 60.0  # of repeated calls
_LONGEST: Final = 400  # letters of an error's message
_OWN: Final = ("bitfront", "objectives", "search", "service", "storage", "workers")
BLOCKED: Final = {
    "packed": _OWN,
    "onnx": (*_OWN, "torch", "onnx"),
    "openvino": (*_OWN, "torch", "onnx", "onnxruntime"),
    "compressed-tensors": (*_OWN, "onnx", "onnxruntime", "openvino"),
    "gguf": (*_OWN, "torch", "transformers", "onnx", "onnxruntime", "openvino"),
}
"""What an artefact's process cannot import, by the kind of artefact."""


class RefusedModel(FailedBuild):
    """An artefact's process ended: it cannot load or run what it was given.

    Attributes:
        reason: What it said last.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(
            f"{kind} refuses the model, in a process of its own: {reason}; --to packed takes every "
            "plan"
        )
        self.reason = reason


Seconds = dict[str, Tensor]
"""Seconds of repeated calls `(repeats, calls)`: of `ARTEFACT`, and of a reference by its dtype."""


class ArtefactProcess:
    """An artefact in a process of its own, where nothing of bitfront can be imported.

    Args:
        folder: The artefact.
        kind: What it is built as, such as `packed`.
        reference: Where the model at full precision is found when it is to be timed.

    Attributes:
        resident_nbytes: Memory that loading the artefact took.
    """

    resident_nbytes: int

    def __init__(self, folder: Path, kind: str, reference: Path | None = None) -> None:
        self._folder = folder
        self._kind = kind
        self._reference = reference or folder

    def __enter__(self) -> Self:
        """Starts it.

        Raises:
            RefusedModel: It cannot be loaded.
        """
        script, blocked = str(RUNTIME / "serve.py"), BLOCKED[self._kind]
        folders = (str(self._folder), str(self._reference))
        command = [sys.executable, "-IB", script, self._kind, *folders, *blocked]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.resident_nbytes = int(self._read()["resident_nbytes"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def run(self, given: dict[str, Tensor]) -> Tensor:
        """The outputs for some samples.

        Raises:
            RefusedModel: It cannot run them.
        """
        self._write(given)
        return self._read()["outputs"]

    def time(self, given: dict[str, Tensor], *, beside: bool = False) -> Seconds:
        """The seconds of each of seven repeats, after one that does not count.

        There are more where a call takes next to no time, and fewer where they take a minute.

        Args:
            given: Some samples; `limits` are lengths of answers, each of which is a call.
            beside: Whether the model at full precision takes turns with the artefact.

        Raises:
            RefusedModel: It cannot run them, or the model at full precision cannot be loaded.
        """
        extra = {"repeats": torch.tensor(REPEATS), "most_s": torch.tensor(_MOST_S)}
        if beside:
            extra["beside"] = torch.tensor(1)
        self._write({**given, **extra})
        found = self._read()
        names = (ARTEFACT, *(REFERENCES[self._kind] if beside else ()))
        return {name: found[name].double() for name in names}

    def _write(self, given: dict[str, Tensor]) -> None:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in given.items()}
            send(_open(self._process.stdin), save(contiguous))
        except BrokenPipeError:
            self._fail()

    def _read(self) -> dict[str, Tensor]:
        found = receive(_open(self._process.stdout))
        if found is None:
            self._fail()
        assert found is not None
        return load(found)

    def _fail(self) -> None:
        _, said = self._process.communicate()
        reason = last_error(said.decode(errors="replace"))
        raise RefusedModel(self._kind, reason or f"it ended with {self._process.returncode}")


def last_error(said: str) -> str:
    """What a process said last, in one line: the message below its last traceback, if any."""
    _, found, rest = said.rpartition("Traceback (most recent call last):\n")
    lines = [line.rstrip() for line in rest.splitlines() if line.strip()]
    if not found:
        return lines[-1] if lines else ""
    frames = takewhile(lambda line: line.startswith(" "), lines)
    told = " ".join(line.strip() for line in lines[len(list(frames)) :])
    return shorten(told, _LONGEST, placeholder=" ...")


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
