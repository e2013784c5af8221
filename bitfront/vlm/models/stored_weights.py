"""A checkpoint's weights where they lie: mapped from safetensors files, read one at a time."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from bitfront.errors import InvalidModel


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The weights of a model by its own names, in the type and on the device that it runs in.

    What is read is not kept: the files are mapped, so their pages are the system's to drop.

    Attributes:
        readers: What reads each weight as it is stored.
        dtype: What floating-point weights are given as.
        device: Where they are given.
    """

    readers: Mapping[str, Callable[[], Tensor]]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of_files(
        cls,
        paths: Mapping[Path, Mapping[str, str]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Those of safetensors files.

        Args:
            paths: Each file with the model's name of every tensor in it that is wanted.
            dtype: As of the class.
            device: As of the class.

        Raises:
            InvalidModel: A file cannot be read.
        """
        readers: dict[str, Callable[[], Tensor]] = {}
        stack = ExitStack()  # the files stay open as long as a reader does
        for path, names in paths.items():
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except Exception as error:  # of its Rust part, and of the system
                raise InvalidModel(f"{path} cannot be mapped: {error}") from error
            for stored, name in names.items():
                readers[name] = _reader(file, stored)
        stack.pop_all()
        return cls(readers, dtype, device)

    def with_tied(self, model: nn.Module) -> Self:
        """The same, with every name of a weight that a model uses in several places."""
        first: dict[int, str] = {}
        readers = dict(self.readers)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            own = first.setdefault(id(parameter), name)
            if name not in readers and own in readers:
                readers[name] = readers[own]
        return replace(self, readers=readers)

    def __contains__(self, name: object) -> bool:
        return name in self.readers

    def read(self, name: str) -> Tensor:
        """A weight in memory of its own: where a file has it decides the last bits of products."""
        tensor = self.readers[name]()
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype, copy=True)


def _reader(file: safe_open, name: str) -> Callable[[], Tensor]:
    return lambda: file.get_tensor(name)  # type: ignore[no-untyped-call]  # theirs
