"""Plans whose weights are chosen layer after layer, on what the layers before really give."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import torch
from cachetools import LRUCache
from jaxtyping import Float
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.kv_cache import projection
from bitfront.layers import Layer
from bitfront.plan import Plan, digest
from bitfront.precision import Precision
from bitfront.quant.inputs import InputQuantizer, InputRange, LearnedBounds
from bitfront.quant.ranges import MAX_ROWS, evenly_spread, searched_range
from bitfront.quant.rounding.methods import rounded_target
from bitfront.quant.rounding.problem import damped_hessian
from bitfront.quant.rounding.targets import REGRESSION_DAMPING, QuantizedInputs, output_target
from bitfront.quant.weights import QuantizedWeight, read_back
from bitfront.spec import QuantizerSpec, Rounding, Target
from bitfront.units import size_text
from bitfront.vlm.layers.rows import multiplied_rows, rows_form
from bitfront.vlm.plan_switch import (
    CodedLayer,
    LayerForm,
    PlanSwitch,
    SearchedRanges,
    quantized_input,
)
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.lockstep import Arrival
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import Stream
from objectives.profiling.calibration import Ranges
from objectives.rounding.full_inputs import MAX_NBYTES, FullInputs, record_full_inputs

_Key = tuple[str, LayerForm]


@dataclass(frozen=True, slots=True, eq=False)
class _Decision:
    """What a layer shows after a quantized prefix."""

    codes: QuantizedWeight
    quantize: InputQuantizer | None

    @property
    def nbytes(self) -> int:
        zero = self.codes.zero
        return (
            self.codes.codes.nbytes + self.codes.scale.nbytes + (0 if zero is None else zero.nbytes)
        )


class SequentialSwitch(PlanSwitch):
    """A switch that rounds each layer on what the quantized layers before it give it.

    Putting a plan on walks the calibration samples through the model once, layer by layer: where
    they reach a layer its range is measured anew, its target regressed and its codes chosen. What
    was decided is known by the plan of the layers before it in the same stream, so plans that
    share a beginning share the walk up to where they part.

    Layers whose target is `own`, embeddings, heads that are tied to one, and layers that run
    several times a sample are rounded as `PlanSwitch` does, on the inputs of the full model.
    Under `auto` so are layers without a moment, and streams whose inputs take too much memory.

    Args:
        task: Its calibration split walks through its model.
        quantizer: Its target is not `own`.
        ranges: As for `PlanSwitch`.
        bounds: As for `PlanSwitch`.
        moments: As for `PlanSwitch`.
        searched: As for `PlanSwitch`.
        cache_nbytes: How many bytes of codes to keep, and of activations between blocks.
        input_nbytes: How many bytes the full model's inputs may take, stream by stream.
        is_blocked: As for `PlanSwitch`.

    Attributes:
        decided: How many layers were rounded so far.
    """

    def __init__(
        self,
        task: Task,
        quantizer: QuantizerSpec,
        ranges: Ranges,
        *,
        bounds: LearnedBounds = MappingProxyType({}),
        moments: Mapping[str, Tensor] = MappingProxyType({}),
        searched: SearchedRanges = lambda _layer, _bits: None,
        cache_nbytes: int = 512 << 20,
        input_nbytes: int = MAX_NBYTES,
        is_blocked: bool = False,
    ) -> None:
        super().__init__(
            task.model,
            quantizer,
            ranges,
            bounds=bounds,
            moments=moments,
            searched=searched,
            is_blocked=is_blocked,
        )
        self.decided = 0
        self._runner = StreamRunner(task.model, self, cache_nbytes)
        self._streams = task.streams(SplitName.CALIBRATION)
        self._order = {stream.key: self._ordered(stream) for stream in self._streams}
        self._full: dict[str, FullInputs | None] = {}
        self._input_nbytes = input_nbytes
        self._known: LRUCache[_Key, _Decision] = LRUCache(
            cache_nbytes, getsizeof=lambda known: known.nbytes
        )
        self._held: dict[_Key, _Decision] = {}
        self._shared: tuple[object, QuantizedInputs] | None = None
        self._sources = {layer.name: layer.source for layer in task.model.layers}

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence where `auto` fits layers to less than `residual`; known after a first plan."""
        if None not in self._full.values():
            return ()
        return (
            "quantizer.target: auto fits weights on the inputs of the full model alone: to compare "
            f"with those behind quantized layers takes more than {size_text(self._input_nbytes)}",
        )

    def coded(self, plan: Plan) -> dict[str, CodedLayer]:
        """What a checkpoint holds of each layer that a plan names; the plan is put on."""
        self.to(plan)
        return super().coded(plan)

    def _ordered(self, stream: Stream) -> list[str]:
        """The layers of a stream as they act: a tied head is at work from its tower's start."""
        layers = [layer for layer in self._model.layers if layer.tower in stream.towers]
        towers = list(dict.fromkeys(layer.tower for layer in layers))

        def place(layer: Layer) -> tuple[int, bool]:
            acts_late = not self._model.acts_from_the_start(layer.name)
            return towers.index(layer.tower), acts_late

        return [layer.name for layer in sorted(layers, key=place)]

    def _forms(self, plan: Plan) -> dict[str, LayerForm]:
        if plan.distil is not None:
            return super()._forms(plan)
        wanted, forms = dict(plan), {}
        kept = {projection(place): str(form) for place, form in plan.cache}
        for stream in self._streams if wanted else ():
            prefix, known = digest(stream.key), self._full_inputs(stream) is not None
            for layer in self._order[stream.key]:
                if layer in wanted:
                    precision = wanted[layer]
                    follows = known and self._follows(layer, precision)
                    forms[layer] = LayerForm(precision, prefix if follows else "")
                    prefix = digest([prefix, layer, str(precision)])
                if layer in kept:
                    prefix = digest([prefix, kept[layer]])
        return forms

    def _follows(self, layer: str, precision: Precision) -> bool:
        """Whether a layer's form depends on the plan before it.

        An expert's does not: behind quantized layers other tokens reach it than in the full model,
        so that there is no input of the full model to compare with.
        """
        target = self.quantizer.target_for(precision.activation_bits)
        return (
            precision.quantizes_weight
            and target is not Target.OWN
            and bool(self._model.multiplying(layer))
            and not self._model.acts_from_the_start(layer)
            and not self._model.is_of_expert(layer)
            and (layer in self._moments or self.quantizer.rounding is not Rounding.AUTO)
        )

    def _full_inputs(self, stream: Stream) -> FullInputs | None:
        """What the layers of a stream get in the full model; None where that is too much."""
        if stream.key not in self._full:
            self.take_off()
            layers, limit = self._order[stream.key], self._input_nbytes
            found = record_full_inputs(self._model, layers, stream, limit)
            quantizer = self.quantizer
            is_open = quantizer.rounding is Rounding.AUTO and quantizer.target is Target.AUTO
            if found is None and not is_open:
                raise SpecError(
                    "the inputs of the layers on the calibration samples take more than "
                    f"{size_text(limit)}: set quantizer.target to own, or take fewer samples"
                )
            self._full[stream.key] = found
        return self._full[stream.key]

    def _prepare(self, plan: Plan, forms: Mapping[str, LayerForm]) -> None:
        """Makes everything known that the plan shows, and holds it."""
        wanted = [(layer, form) for layer, form in forms.items() if form.prefix]
        self._held = {key: self._known[key] for key in wanted if key in self._known}
        missing = {layer for layer, form in wanted if (layer, form) not in self._held}
        if missing:
            self.take_off()
            self._put_cache(plan)
        for stream in self._streams:
            layers = self._order[stream.key]
            if not missing.isdisjoint(layers):
                self._walk(stream, plan, forms, missing.intersection(layers))

    def _walk(
        self, stream: Stream, plan: Plan, forms: Mapping[str, LayerForm], missing: set[str]
    ) -> None:
        layers = self._order[stream.key]
        full = self._full_inputs(stream)
        assert full is not None

        def quantizer(layer: str) -> InputQuantizer | None:
            return self._input_quantizer(layer, forms[layer]) if layer in forms else None

        def decide(layer: str, arrivals: Sequence[Arrival]) -> None:
            decision = self._decision(layer, forms[layer].precision, arrivals, full)
            self._keep((layer, forms[layer]), decision)
            self._model.put_weight(layer, self._weight(layer, forms[layer]))

        try:
            for layer in layers:
                if layer in forms and layer not in missing:
                    self._model.put_weight(layer, self._weight(layer, forms[layer]))
            self._runner.walk(stream, plan, missing, quantizer, decide)
        finally:
            self._shared = None
            for layer in layers:
                self._model.put_weight(layer, None)
        for layer in missing:
            if (layer, forms[layer]) not in self._held:  # no sample passed it
                self._keep((layer, forms[layer]), self._own(layer, forms[layer].precision))

    def _keep(self, key: _Key, decision: _Decision) -> None:
        self.decided += 1
        self._held[key] = decision
        with suppress(ValueError):  # it alone is larger than the limit
            self._known[key] = decision

    def _own(self, layer: str, precision: Precision) -> _Decision:
        codes = super()._codes(layer, LayerForm(precision))
        return _Decision(codes, self.input_quantizer(layer, precision))

    def _decision(
        self, layer: str, precision: Precision, arrivals: Sequence[Arrival], full: FullInputs
    ) -> _Decision:
        if layer in full.repeated:
            return self._own(layer, precision)
        quantize = self._range_after(layer, precision, arrivals)
        inputs = self._inputs(layer, quantize, arrivals, full)
        target = self.quantizer.target_for(precision.activation_bits)
        lost = self._lost(layer, arrivals, full) if target is Target.RESIDUAL else None
        hessian = damped_hessian(inputs.moment, REGRESSION_DAMPING)
        wanted = output_target(self._model.weight(layer), hessian, inputs, lost)
        return _Decision(rounded_target(wanted, hessian, precision, self.quantizer), quantize)

    def _inputs(
        self,
        layer: str,
        quantize: InputQuantizer | None,
        arrivals: Sequence[Arrival],
        full: FullInputs,
    ) -> QuantizedInputs:
        """What the layer gets; layers that share an input and its range share the result."""
        levels = None if quantize is None else quantize.levels
        module = self._model.multiplying(layer)[0]
        key = (self._sources[layer], rows_form(module), levels)
        if self._shared is None or self._shared[0] != key:
            rows, full_rows = [], []
            for arrival in arrivals:
                given = arrival.inputs
                if quantize is not None:
                    given = quantized_input(quantize, module, given)
                rows.append(multiplied_rows(module, given))
                full_rows.append(multiplied_rows(module, full.inputs[layer][arrival.batch]))
            self._shared = key, QuantizedInputs.of(torch.cat(rows), torch.cat(full_rows))
        return self._shared[1]

    def _lost(
        self, layer: str, arrivals: Sequence[Arrival], full: FullInputs
    ) -> Float[Tensor, "n rows"] | None:
        """The full model's residual stream before the layer minus the quantized one's."""
        originals = full.streams[layer]
        parts = []
        for arrival in arrivals:
            if arrival.stream is None or arrival.stream.shape[:-1] != arrival.inputs.shape[:-1]:
                return None
            parts.append((originals[arrival.batch] - arrival.stream).float().flatten(0, -2))
        return torch.cat(parts)

    def _range_after(
        self, layer: str, precision: Precision, arrivals: Sequence[Arrival]
    ) -> InputQuantizer | None:
        """What the input goes through, with a range of the inputs after the prefix."""
        quantize = self.input_quantizer(layer, precision)
        bits = precision.activation_bits
        if quantize is None or quantize.range is None or precision.clip < 1:
            return quantize
        if bits in self.bounds.get(layer, {}):
            return quantize
        if self._searches(layer, precision):
            module = self._model.multiplying(layer)[0]
            quota = -(-MAX_ROWS // len(arrivals))
            rows = [
                evenly_spread(multiplied_rows(module, arrival.inputs.float()), quota)
                for arrival in arrivals
            ]
            return InputQuantizer(
                bits, searched_range(torch.cat(rows), self._model.weight(layer), bits)
            )
        low = min(float(arrival.inputs.min()) for arrival in arrivals)
        high = max(float(arrival.inputs.max()) for arrival in arrivals)
        return InputQuantizer(bits, InputRange(low, high))

    def _weight(self, layer: str, form: LayerForm) -> Float[Tensor, "rows columns"]:
        if not form.prefix:
            return super()._weight(layer, form)
        return read_back(self._codes(layer, form), self._model.weight(layer))

    def _codes(self, layer: str, form: LayerForm) -> QuantizedWeight:
        return self._held[layer, form].codes if form.prefix else super()._codes(layer, form)

    def _input_quantizer(self, layer: str, form: LayerForm) -> InputQuantizer | None:
        if form.prefix:
            return self._held[layer, form].quantize
        return super()._input_quantizer(layer, form)
