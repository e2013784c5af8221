"""Loads the model of a job from whichever library has it."""

import torch

from bitfront.errors import SpecError, UnavailableDevice
from bitfront.spec import ModelSource, ModelSpec
from bitfront.vlm.loaders.open_clip import load_open_clip
from bitfront.vlm.loaders.reference import load_reference
from bitfront.vlm.loaders.transformers import load_transformers
from bitfront.vlm.models.layered import LayeredModel


def load_model(spec: ModelSpec, memory_nbytes: int | None = None) -> LayeredModel:
    """The model that the specification names, on its device.

    Args:
        spec: The model.
        memory_nbytes: What a process may take of the device's memory: a LLaVA whose weights take
            more than half of it is read block by block. None loads any model whole.

    Raises:
        SpecError: The model takes more, and is not of a kind that is read block by block.
        MissingModel: The model or its weights cannot be found.
        InvalidModel: The weights do not fit, are not finite, or it is of a kind
            that is not known.
        SpecError: There is no such kind of device.
        UnavailableDevice: This machine has no such device.
    """
    device = choose_device(spec.device)
    match spec.source:
        case ModelSource.REFERENCE:
            return load_reference(spec.name, device)
        case ModelSource.OPEN_CLIP:
            return load_open_clip(spec, device)
        case ModelSource.TRANSFORMERS:
            return load_transformers(spec, device, memory_nbytes)


def choose_device(name: str) -> torch.device:
    """The device of that name; for `auto`, CUDA where there is one and the CPU elsewhere.

    Raises:
        SpecError: There is no such kind of device.
        UnavailableDevice: This machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(f"device {name!r} is none of auto, cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableDevice(
            f"the job asks for device {name}, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices: use device: auto or cpu"
        )
    return device
