"""Batches that run side by side: each waits before a layer until what it shows is decided."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitfront.quant.inputs import InputQuantizer
from bitfront.vlm import LayeredModel
from bitfront.vlm.plan_switch import quantized_input


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A batch that waits before a layer.

    Attributes:
        batch: Its number.
        inputs: What the layer is about to get, not quantized yet.
        stream: The residual stream that the layer's output will be added to; None without.
    """

    batch: int
    inputs: Tensor
    stream: Tensor | None


class _Cancelled(BaseException):
    """Ends the run of a batch that is not needed any more."""


@dataclass(slots=True, eq=False)
class _Run:
    """The run of one batch, in a thread of its own; only one of all runs at a time."""

    batch: int
    run: Callable[[], object]
    layer: str | None = None
    arrival: Arrival | None = None
    streams: dict[nn.Module, Tensor] = field(default_factory=dict)
    _error: BaseException | None = None
    _thread: threading.Thread | None = None
    _is_cancelled: bool = False
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _paused: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def advance(self) -> None:
        """Lets it run to its next wait, or to its end; raises what it raised."""
        self.layer = self.arrival = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()
        else:
            self._turn.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def wait(self, layer: str, inputs: Tensor, stream: Tensor | None) -> None:
        """Called within the run: gives the turn back until `advance`."""
        self.layer, self.arrival = layer, Arrival(self.batch, inputs, stream)
        self._paused.release()
        self._turn.acquire()
        if self._is_cancelled:
            raise _Cancelled

    def end(self) -> None:
        """Ends it where it waits."""
        if self._thread is not None and self._thread.is_alive():
            self._is_cancelled = True
            self._turn.release()
            self._thread.join()

    def _live(self) -> None:
        try:
            with torch.no_grad():
                self.run()
        except _Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `advance`
            self._error = error
        finally:
            self._paused.release()


class Lockstep:
    """Runs batches of a stream side by side, from layer to layer.

    Args:
        model: The model; nothing else may put plans onto it meanwhile.
        layers: Those that the batches run through, in order of execution.
        undecided: The layers among them before which the batches wait.
        quantizer: What the input of a decided layer goes through.
    """

    def __init__(
        self,
        model: LayeredModel,
        layers: Sequence[str],
        undecided: Collection[str],
        quantizer: Callable[[str], InputQuantizer | None],
    ) -> None:
        self._model = model
        self._order = {layer: place for place, layer in enumerate(layers)}
        self._undecided = set(undecided)
        self._quantizer = quantizer
        self._now: _Run | None = None

    def run(
        self,
        batches: Sequence[Callable[[], object]],
        decide: Callable[[str, Sequence[Arrival]], None],
        started: Callable[[int], AbstractContextManager[None]],
        watched: Mapping[nn.Module, Callable[[int, Tensor], None]],
    ) -> None:
        """Runs until every layer that a batch reaches is decided; then all runs end.

        Args:
            batches: What runs each batch.
            decide: Decides a layer, given all batches that wait before it: from then on its
                weight is on the model, and `quantizer` knows its input's.
            started: What holds while a batch runs to its first wait, by its number.
            watched: Modules whose outputs, where they are tensors, are shown with the batch.
        """
        runs = [_Run(number, run) for number, run in enumerate(batches)]
        with self._hooked(watched):
            try:
                for run in runs:
                    with started(run.batch):
                        self._advance(run)
                while self._undecided:
                    waiting = [run for run in runs if run.layer is not None]
                    if not waiting:
                        break
                    layer = min(
                        (run.layer for run in waiting if run.layer), key=self._order.__getitem__
                    )
                    here = [run for run in waiting if run.layer == layer]
                    decide(layer, [run.arrival for run in here if run.arrival is not None])
                    self._undecided.discard(layer)
                    if self._undecided:
                        for run in here:
                            self._advance(run)
            finally:
                for run in runs:
                    run.end()

    def _advance(self, run: _Run) -> None:
        self._now = run
        run.advance()

    @contextmanager
    def _hooked(self, watched: Mapping[nn.Module, Callable[[int, Tensor], None]]) -> Iterator[None]:
        streams = {layer: self._model.stream(layer) for layer in self._order}
        with ExitStack() as stack:
            for module in {stream for stream in streams.values() if stream is not None}:
                stack.callback(module.register_forward_pre_hook(self._note_stream).remove)
            for layer in self._order:
                for module in self._model.multiplying(layer):
                    hook = module.register_forward_pre_hook(self._before(layer, streams[layer]))
                    stack.callback(hook.remove)
            for module, show in watched.items():
                hook = module.register_forward_hook(self._after(show))
                stack.callback(hook.remove)
            yield

    def _note_stream(self, module: nn.Module, args: tuple[object, ...]) -> None:
        assert self._now is not None
        if isinstance(args[0], Tensor):
            self._now.streams[module] = args[0]

    def _before(
        self, layer: str, stream: nn.Module | None
    ) -> Callable[[nn.Module, tuple[object, ...]], tuple[object, ...]]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
            given, *rest = args
            run = self._now
            assert isinstance(given, Tensor)
            assert run is not None
            if layer in self._undecided:
                run.wait(layer, given, None if stream is None else run.streams.get(stream))
            quantize = self._quantizer(layer)
            return given if quantize is None else quantized_input(quantize, module, given), *rest

        return hook

    def _after(
        self, show: Callable[[int, Tensor], None]
    ) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            assert self._now is not None
            if isinstance(output, Tensor):
                show(self._now.batch, output)

        return hook
