"""torch, for a job without a target: its kernels, which no artefact uses yet."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bitfront.errors import UnavailableDevice
from bitfront.layers import Layer
from bitfront.objective import Objective
from bitfront.precision import Precision
from bitfront.quant.inputs import InputRange
from bitfront.spec import QuantizerSpec
from bitfront.vlm import DualEncoder, PlanSwitch
from objectives.cost.kernels import FLOAT32, INT4_GROUPS, Kernel, find_kernels
from objectives.cost.runtimes.runtime import STANDARD, Timed, Timing, describe_cpu


@dataclass(frozen=True, slots=True)
class TorchRuntime:
    """Times torch's kernels on the model's device.

    A convolution counts as the product with its unfolded patches.

    Attributes:
        model: The model.
        switch: The model's switch.
        quantizer: How inputs get their codes: it decides which int8 kernel runs.
        timing: How often each is run.
    """

    model: DualEncoder
    switch: PlanSwitch
    quantizer: QuantizerSpec
    timing: Timing = STANDARD

    @property
    def is_target(self) -> bool:
        """No: nothing that is built runs its integer kernels."""
        return False

    @property
    def name(self) -> str:
        """The runtime with its version."""
        return f"torch {torch.__version__}"

    @property
    def device(self) -> str:
        """The processor and its threads, or the GPU."""
        device = self.model.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return describe_cpu(f"{torch.get_num_threads()} threads")

    def products(self, layer: Layer, precision: Precision) -> list[Timed]:
        """Every kernel that multiplies a layer in a precision.

        Raises:
            UnavailableDevice: None does.
        """
        kernels = find_kernels(precision, layer.columns, self.model.device, self.quantizer)
        if not kernels:
            raise UnavailableDevice(
                f"no kernel on {self.device} multiplies layer {layer.name} at {precision}: search "
                "w16a16, w8a8 without groups and, on a CPU, w4a16 in groups of "
                f"{', '.join(map(str, INT4_GROUPS))} or none, set target: onnxruntime or "
                "openvino, which have more, or put bit_operations in place of latency_s among "
                "the objectives"
            )
        return [self._timed(kernel, layer) for kernel in kernels]

    def own_product(self, layer: Layer) -> Timed:
        """The product of the model as it is loaded."""
        return self._timed(FLOAT32, layer)

    def whole(self, figure: Objective) -> Timed:
        """The vision tower as it was loaded: what an image's latency is of."""
        assert figure is Objective.LATENCY_S
        return Timed(f"vision tower {self.model.identity}", self._time_tower)

    def _time_tower(self, batch_size: int) -> float:
        self.switch.clear()
        pixels = torch.zeros(batch_size, *self.model.image_shape, device=self.model.device)
        with torch.inference_mode():
            return self._median(lambda: self.model.encode_images(pixels))

    def _timed(self, kernel: Kernel, layer: Layer) -> Timed:
        return Timed(kernel.name, partial(self._time_kernel, kernel, layer))

    def _time_kernel(self, kernel: Kernel, layer: Layer, batch_size: int) -> float:
        positions = batch_size * layer.positions
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(layer.rows, layer.columns, generator=generator)
        inputs = torch.randn(positions, layer.columns, generator=generator).to(self.model.device)
        range_ = InputRange(-4.0, 4.0) if self.quantizer.activations == "static" else None
        try:
            with torch.inference_mode():
                product = kernel.prepare(weight.to(self.model.device), range_)
                return self._median(lambda: product(inputs))
        except (RuntimeError, NotImplementedError) as error:
            raise UnavailableDevice(
                f"the kernel {kernel.name} refuses layer {layer.name} with {layer.rows} rows, "
                f"{layer.columns} columns and {positions} positions on {self.device}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error

    def _median(self, run: Callable[[], object]) -> float:
        """The median seconds of a run, until the device has finished it."""

        def finished() -> None:
            run()
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)

        return self.timing.median(finished)
