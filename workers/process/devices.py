"""The devices that torch has here, each tried with a product."""

from dataclasses import dataclass

import torch

from bitfront.units import size_text


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine.

    Attributes:
        name: As a job names it, such as `cuda:0`.
        detail: What it is.
        fault: Why it cannot be used; None where a product came out right.
    """

    name: str
    detail: str
    fault: str | None


def devices() -> list[Device]:
    """The CPU, and every GPU that torch sees."""
    count = torch.get_num_threads()
    threads = "1 thread" if count == 1 else f"{count} threads"
    found = [Device("cpu", f"torch {torch.__version__}, {threads}", _fault("cpu"))]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = f"{properties.name}, {size_text(properties.total_memory)}"
        found.append(Device(f"cuda:{index}", detail, _fault(f"cuda:{index}")))
    return found


def _fault(name: str) -> str | None:
    """Why a product of whole numbers does not come out on the device; None where it does."""
    try:
        ones = torch.ones(64, 64, device=name)
        total = float((ones @ ones).sum())
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]
    return None if total == 64.0**3 else f"64 x 64 ones times themselves sum up to {total:g}"
