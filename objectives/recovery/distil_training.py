"""End-to-end distillation of what a checkpoint holds for a plan, from the full-precision model.

Scales, zero points, input ranges, norms and biases, and where asked the codes, are trained on the
divergence of the model's outputs from those of full precision, on the tuning samples. Labels are
no targets; a model that answers questions reads the right answers up to each token. Where images
and captions look for each other, a step compares some images with all captions, both ways.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from bitfront.errors import InvalidModel, SpecError
from bitfront.plan import Plan
from bitfront.quant.trained import TrainedRange, TrainedVector, TrainedWeight
from bitfront.vlm.plan_switch import (
    CodedLayer,
    InputRounding,
    PlanSwitch,
    TrainedPlan,
    input_hook,
)
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.execution.similarity import divergences_nats
from objectives.execution.streams import Rows, Stream
from objectives.recovery.distillation import teacher_cross_entropy
from objectives.recovery.optimisation import Group, Optimisation

SAMPLES_A_STEP = 32
# Of captions, which all images share: batches that run anew in a step.
SHARED_BATCHES = 1
# What the layers' sensitivities are measured on.
SENSITIVITY_SAMPLES = 128

# At first; a growth of 0.01 is one of a hundredth.
GRID_RATE = 3e-3
RANGE_RATE = 3e-3
VECTOR_RATE = 1e-3
CODE_RATE = 1e-2

_Run = Callable[[Stream, int, Rows], Tensor]


class DistilTraining:
    """A plan's tensors in training.

    The model is bare between steps; within one its weights, norms and biases are replaced, and its
    inputs rounded, by what is trained.

    Attributes:
        plan: What is trained; it is distilled.
        steps: Steps taken so far.
        trained_layers: The layers whose scales, zero points and ranges are trained.
    """

    def __init__(self, task: Task, switch: PlanSwitch, plan: Plan, seed: int) -> None:
        """Starts with what rounding gives the plan.

        Args:
            task: Its tuning split is trained on.
            switch: Of its model; a plan may be on it between two steps.
            plan: The plan.
            seed: Of the order of the samples.
        """
        assert plan.distil is not None
        self.plan, self._settings = plan, plan.distil
        self.steps = 0
        self._task, self._model, self._switch = task, task.model, switch
        streams = task.streams(SplitName.TUNING)
        self._own = next((s for s in streams if s.are_independent), streams[0])
        self._shared = tuple(stream for stream in streams if stream is not self._own)
        self._samples = sum(self._own.sizes)
        self._generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(mode=False), torch.no_grad():
            self._bare = _Bare(task.model.module)
            self._paths = {m: path for path, m in task.model.module.named_modules()}
            switch.clear()
            self._full = {stream.key: self._whole(stream, _run) for stream in streams}
            self._teacher = self._task.scores(self._full).float()
            self._start = switch.coded(plan.rounded)
            shown = switch.shown(plan.rounded)
            self._fixed = {layer: own.weight.clone() for layer, own in shown.items()}
            switch.clear()
            self._weights: dict[str, TrainedWeight] = {}
            self._ranges: dict[str, TrainedRange] = {}
            self._vectors = {
                name: TrainedVector(task.model.module.get_parameter(name))
                for name in task.model.vectors
            }
            self._take(self._start)
        if self._settings.share < 1:
            self._take(self._most_sensitive())
        self._fixed = {n: own for n, own in self._fixed.items() if n not in self._weights}
        self._optimisation = self._optimised()
        self._first = self.divergence()
        self._last = (0, self._first)
        with torch.inference_mode(mode=False), torch.no_grad(), self._student() as run:
            # What the shared samples gave when they last ran.
            self._carried = {stream.key: self._whole(stream, run) for stream in self._shared}

    @property
    def trained_layers(self) -> tuple[str, ...]:
        """The layers whose scales, zero points and ranges are trained."""
        return tuple(sorted(self._weights.keys() | self._ranges.keys()))

    def step(self) -> float:
        """Take one optimiser step; the loss before it, in nats."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            order = torch.randperm(self._samples, generator=self._generator)
            loss = self._optimisation.backward([self._loss(order[:SAMPLES_A_STEP])])
        self._optimisation.step(self.steps)
        self.steps += 1
        return loss

    def divergence(self) -> float:
        """The mean divergence from full precision on the whole tuning split, in nats."""
        with torch.inference_mode(mode=False), torch.no_grad(), self._student() as run:
            outputs = {s.key: self._whole(s, run) for s in (self._own, *self._shared)}
            scores = self._task.scores(outputs)
        nats = self._directions(divergences_nats(self._teacher, scores), sum(self._own.rows))
        return float(torch.stack([part.mean() for part in nats]).mean())

    def trained(self) -> TrainedPlan:
        """What the plan puts onto the model as it is trained now.

        What does not lower the divergence on the tuning split is not kept: then it is what
        rounding gave.
        """
        if self._last[0] != self.steps:
            self._last = self.steps, self.divergence()
        if not self._last[1] < self._first:  # NaN is no better
            return TrainedPlan(self._start, {})
        layers = {
            name: CodedLayer(
                self._weights[name].stored() if name in self._weights else own.codes,
                self._ranges[name].stored() if name in self._ranges else own.quantize,
            )
            for name, own in self._start.items()
        }
        return TrainedPlan(layers, {name: v.stored() for name, v in self._vectors.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """All that the further steps depend on, on the CPU."""
        tensors = {
            "generator": self._generator.get_state(),
            "steps": torch.tensor(self.steps),
            **{f"shared.{key}": output for key, output in self._carried.items()},
            **self._optimisation.state(),
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the training into a state that `state_dict` gave; an unusable one changes nothing.

        Raises:
            InvalidModel: The state is that of another training.
        """
        try:
            generator = torch.Generator()
            generator.set_state(state["generator"])
            steps = int(state["steps"])
            carried = {
                key: state[f"shared.{key}"].to(output).view_as(output).clone()
                for key, output in self._carried.items()
            }
            values = self._optimisation.read(state, steps)
        except (KeyError, RuntimeError) as error:
            raise InvalidModel(
                f"this is not a state of the distillation in training: {error}"
            ) from error
        self._generator, self.steps, self._carried = generator, steps, carried
        self._optimisation.put(values, steps)

    def _take(self, layers: Mapping[str, CodedLayer]) -> None:
        """Trains the weights and ranges of these layers, from their start on."""
        self._weights, self._ranges = {}, {}
        for name, own in layers.items():
            if own.codes is not None:
                weight = self._model.weight(name) if self._settings.codes else None
                self._weights[name] = TrainedWeight(
                    own.codes, weight, whole=self._switch.quantizer.has_whole_zeros
                )
            if own.quantize is not None and own.quantize.range is not None:
                self._ranges[name] = TrainedRange(own.quantize, self._model.device)

    def _most_sensitive(self) -> dict[str, CodedLayer]:
        """The share of the layers whose grids have the largest gradients, all at their start."""
        trained = self.trained_layers
        parameters = {
            name: [
                parameter
                for parts in (self._weights, self._ranges)
                if name in parts
                for parameter in parts[name].parameters()
            ]
            for name in trained
        }
        flat = [parameter for own in parameters.values() for parameter in own]
        samples = torch.arange(min(SENSITIVITY_SAMPLES, self._samples))
        with torch.inference_mode(mode=False), torch.enable_grad(), self._student() as run:
            outputs = {s.key: self._whole(s, run) for s in self._shared}
            outputs[self._own.key] = self._picked(samples, run)
            gradients = torch.autograd.grad(
                self._followed(outputs, samples), flat, materialize_grads=True
            )
        squares = iter([float(gradient.square().sum()) for gradient in gradients])
        sensitivity = {name: sum(next(squares) for _ in own) for name, own in parameters.items()}
        count = max(1, round(self._settings.share * len(trained)))
        chosen = sorted(trained, key=lambda name: (-sensitivity[name], name))[:count]
        return {name: self._start[name] for name in chosen}

    def _optimised(self) -> Optimisation:
        grids, codes, vectors = [], [], [v.values for v in self._vectors.values()]
        for weight in self._weights.values():
            grids += [p for p in (weight.growth, weight.shift) if p is not None]
            codes += [] if weight.codes is None else [weight.codes]
        ends = [ends.ends for ends in self._ranges.values()]
        rates = ((grids, GRID_RATE), (codes, CODE_RATE), (ends, RANGE_RATE), (vectors, VECTOR_RATE))
        multiplier = self._settings.learning_rate_multiplier
        groups = [Group(parameters, rate * multiplier) for parameters, rate in rates if parameters]
        return Optimisation(groups, self._settings.steps)

    @contextmanager
    def _student(self) -> Iterator[_Run]:
        """What runs streams through the model as it is trained now; gradients flow to latents."""
        self._switch.clear()
        tensors: dict[str, Tensor] = {n: vector() for n, vector in self._vectors.items()}
        with ExitStack() as stack:
            for layer, own in self._start.items():
                if layer in self._weights:
                    weight = self._weights[layer]().to(self._model.weight(layer).dtype)
                else:
                    weight = self._fixed[layer]
                for module in self._model.modules(layer):
                    shape = module.get_parameter("weight").shape
                    tensors[f"{self._paths[module]}.weight"] = weight.view(shape)
                quantize: InputRounding | None = self._ranges.get(layer, own.quantize)
                for module in self._model.multiplying(layer) if quantize is not None else ():
                    assert quantize is not None
                    hook = input_hook(quantize, module)
                    handle = module.register_forward_pre_hook(hook, prepend=True)
                    stack.callback(handle.remove)
            named = {f"module.{name}": tensor for name, tensor in tensors.items()}

            def run(stream: Stream, batch: int, rows: Rows) -> Tensor:
                call = (lambda: stream.run(batch, rows=rows),)
                output: Tensor = functional_call(self._bare, named, call, tie_weights=False)
                return output

            yield run

    def _loss(self, samples: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The cross-entropy of some samples' outputs under those of full precision, in nats."""
        with self._student() as run:
            outputs = {stream.key: self._some(stream, run) for stream in self._shared}
            outputs[self._own.key] = self._picked(samples, run)
        return self._followed(outputs, samples)

    def _followed(
        self, outputs: Mapping[str, Tensor], samples: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """A divergence that gradients flow from.

        Raises:
            SpecError: A person's own task lets none through.
        """
        loss = self._divergence_of(outputs, samples)
        if not loss.requires_grad:
            raise SpecError(
                "space.recovery: the logits of the task carry no gradients, and a distillation "
                "follows them: compute them without torch.no_grad, or leave it out"
            )
        return loss

    def _divergence_of(
        self, outputs: Mapping[str, Tensor], samples: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        rows = self._rows_of(samples).to(self._teacher.device)
        scores, teacher = self._task.scores(outputs).float(), self._teacher
        if self._task.compares_samples:  # the candidates are those of the step
            teacher = self._task.scores(
                {**self._full, self._own.key: self._full[self._own.key][rows]}
            ).float()
        else:
            teacher = teacher[rows]
        both = (self._directions(found, len(rows)) for found in (scores, teacher))
        losses = [teacher_cross_entropy(*parts) for parts in zip(*both, strict=True)]
        return torch.stack(losses).mean()

    def _directions(self, rows: Tensor, own: int) -> tuple[Tensor, ...]:
        """The rows of each direction: those of the own samples, and what looks for them."""
        return (rows[:own], rows[own:]) if self._task.compares_samples else (rows,)

    def _whole(self, stream: Stream, run: _Run) -> Tensor:
        return torch.cat([run(stream, batch, _ALL) for batch in range(len(stream.sizes))])

    def _some(self, stream: Stream, run: _Run) -> Tensor:
        """The output of shared samples, of which some batches run anew and the others last did."""
        count = len(stream.sizes)
        chosen = set(torch.randperm(count, generator=self._generator)[:SHARED_BATCHES].tolist())
        parts = list(torch.split(self._carried[stream.key], list(stream.rows)))
        for batch in sorted(chosen):
            parts[batch] = run(stream, batch, _ALL)
        output = torch.cat(parts)
        self._carried[stream.key] = output.detach()
        return output

    def _picked(self, samples: Int[Tensor, " n"], run: _Run) -> Tensor:
        """The output of some samples, in rising order."""
        return torch.cat([run(self._own, batch, rows) for batch, rows in self._places(samples)])

    def _places(self, samples: Int[Tensor, " n"]) -> Iterator[tuple[int, Tensor]]:
        """The batches that hold some samples, with their places in each."""
        first = 0
        for batch, size in enumerate(self._own.sizes):
            inside = samples[(samples >= first) & (samples < first + size)]
            if len(inside):
                yield batch, inside.sort().values - first
            first += size

    def _rows_of(self, samples: Int[Tensor, " n"]) -> Int[Tensor, " rows"]:
        """The rows of the whole output that belong to some samples, in rising order."""
        firsts = [0, *accumulate(self._own.rows)]
        parts = []
        for batch, places in self._places(samples):
            each = self._own.rows[batch] // self._own.sizes[batch]
            parts.append(firsts[batch] + (places[:, None] * each + torch.arange(each)).flatten())
        return torch.cat(parts)


_ALL = slice(None)


def _run(stream: Stream, batch: int, rows: Rows) -> Tensor:
    return stream.run(batch, rows=rows)


class _Bare(nn.Module):
    """A model within which anything can be called that runs it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[[], Tensor]) -> Tensor:
        """What the call gives."""
        return call()
