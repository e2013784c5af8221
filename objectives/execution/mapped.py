"""Tensors that lie in a file: memory holds of them what it has room for."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor


def mapped(tensor: Tensor) -> Tensor:
    """The same values on the CPU, mapped from a file that goes when they do.

    The file is in the folder of temporary files (`TMPDIR`), and has no name any more, so that
    nothing is left of it however the process ends. Its pages are the system's to write and drop.

    Raises:
        OSError: The disk is full.
    """
    if tensor.numel() == 0:
        return tensor
    with tempfile.NamedTemporaryFile(prefix="bitfront-") as file:
        file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        found = torch.from_file(
            str(Path(file.name)), shared=True, size=tensor.numel(), dtype=tensor.dtype
        )
    return found.view(tensor.shape)
