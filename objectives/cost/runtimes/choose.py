"""The runtime that a job's latencies are measured in."""

import os
from typing import Final

from bitfront.errors import UnavailableDevice
from bitfront.spec import JobSpec
from bitfront.targets import OPENVINO, Target, target_named
from bitfront.vlm import DualEncoder, GenerativeModel, PlanSwitch
from objectives.cost.runtimes.runtime import ONE_THREAD, STANDARD, Runtime
from objectives.cost.runtimes.torch_runtime import TorchRuntime

THREADS: Final = "BITFRONT_RUNTIME_THREADS"
"""The variable that says how many threads a target has; verification reads it too."""


def timed_target(spec: JobSpec) -> Target | None:
    """The target that a job's latencies are measured in; None for torch, or for no latencies.

    Raises:
        UnavailableDevice: It is not installed.
    """
    target = None if spec.timed_in is None else target_named(spec.timed_in)
    if target is not None and target.missing:
        raise UnavailableDevice(
            f"times are measured in {target.name}, which needs {' and '.join(target.missing)}: "
            f"'pip install bitfront[{target.extra}]'"
        )
    return target


def choose_runtime(
    spec: JobSpec, model: DualEncoder | GenerativeModel, switch: PlanSwitch, classes: int = 0
) -> Runtime:
    """The job's target, or torch where it has none.

    Args:
        spec: The job.
        model: Its model.
        switch: The model's switch.
        classes: How many classes an image is compared with; 0 for a task without classes.

    Raises:
        UnavailableDevice: The target is not installed, its threads are no number, or the model
            answers questions and the job has no target.
    """
    target = timed_target(spec)
    if target is None and isinstance(model, GenerativeModel):
        raise UnavailableDevice(
            "the times of a model that answers questions are measured in what it is built for: set "
            "target: onnxruntime or openvino, or put bit_operations in their place"
        )
    if target is None:
        assert isinstance(model, DualEncoder)
        return TorchRuntime(model, switch, spec.quantizer)
    threads = _threads()
    timing = ONE_THREAD if threads == 1 else STANDARD
    # Only where they are installed can these be imported.
    if target is OPENVINO:
        from objectives.cost.runtimes.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(model, switch, spec.quantizer, classes, threads, timing)
    from objectives.cost.runtimes.onnx_runtime import OnnxRuntime

    return OnnxRuntime(model, switch, spec.quantizer, classes, threads, timing)


def _threads() -> int:
    text = os.environ.get(THREADS, "0")
    if not text.isdecimal():
        raise UnavailableDevice(
            f"{THREADS} is {text!r}: write a number of threads, or 0 for the runtime's own choice"
        )
    return int(text)
