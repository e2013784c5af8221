"""Evaluating configurations, with nothing done twice: what a trial is worth on a split."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Self

from torch import Tensor

from bitfront.attempt import IntermediateValue
from bitfront.choices import cache_forms
from bitfront.errors import InvalidMetric
from bitfront.files import SharedPath
from bitfront.identity.keys import features_key, recovery_checkpoint_key
from bitfront.objective import Objective
from bitfront.plan import Configuration, Plan
from bitfront.quant.inputs import LearnedBounds, bounds_to_json
from bitfront.spec import JobSpec, Rounding
from bitfront.trial import Evaluation
from bitfront.vlm import PlanSwitch, load_model
from bitfront.vlm.kv_rounding import cache_places
from objectives.cost.activations import ActivationMemory
from objectives.cost.costs import (
    bit_operations,
    bits_per_weight,
    blocked_parts,
    cache_nbytes,
    configuration_nbytes,
)
from objectives.cost.latency import LatencyMeter, LatencyTable
from objectives.data.inspection import Inspector
from objectives.data.split_name import SplitName
from objectives.evaluation.families.family import Family
from objectives.evaluation.families.registry import load_family
from objectives.evaluation.limits import refuse_limits, with_unreached_experts
from objectives.evaluation.scorer import PartialScore, ScoringContext
from objectives.execution.feature_store import MEMORY_NBYTES, FeatureStore
from objectives.execution.stopwatch import Stopwatch
from objectives.profiling.cache_calibration import CacheCalibration
from objectives.profiling.calibration import Ranges, calibrate, range_table
from objectives.profiling.moments import measure_moments, missing_note
from objectives.profiling.range_search import RangeSearch
from objectives.recovery.checkpointed_training import RecoveryCheckpoint, advance
from objectives.recovery.distiller import Distiller
from objectives.rounding.sequential import SequentialSwitch


class Evaluator:
    """Evaluates the configurations of one job.

    It keeps quantized weights, the activations between transformer blocks, the features of
    each tower by its own part of the plan, and finished recoveries. None of it changes a
    result: values are equal to the last bit whatever was evaluated before.

    Args:
        spec: The job.
        family: Its model at its task; the evaluator puts plans onto the model.
        ranges: What `calibrate` returned for the job's clips.
        cache_nbytes: How much of the activations between blocks to keep; 0 keeps neither
            them nor features nor recoveries.
        bounds: What visual-encoder optimisation learned.
        features: Folder for features that memory has no room for.
        moments: What `measure_moments` returned, for a job whose rounding is not `nearest`.
        latencies: The file that remembers kernels' times.
        unreached: A note on experts that no calibration token reaches.

    Attributes:
        spec: The job.
        family: Its model family.
        task: The family's task.
        model: The task's model.
        ranges: The static input ranges.
        switch: What puts the plans of trials onto the model.
        cell_switch: What cells are measured with: it rounds each layer on the inputs of the full
            model. The same as `switch` where no weight depends on the layers before it.
        scorer: What measures how well a configuration does.
        cache_places: The places of the model's KV cache, for a job that counts or rounds it.
        latency_meters: What times a configuration; none for a job that needs no time.
    """

    def __init__(
        self,
        spec: JobSpec,
        family: Family,
        ranges: Ranges,
        *,
        cache_nbytes: int = 1 << 30,
        bounds: LearnedBounds = MappingProxyType({}),
        features: Path | None = None,
        moments: Mapping[str, Tensor] = MappingProxyType({}),
        latencies: Path | None = None,
        unreached: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        family.check(spec)
        refuse_limits(spec, family.task.model)
        asks = spec.context_tokens is not None or spec.space.kv_cache is not None
        self.cache_places = cache_places(family.task.model) if asks else ()
        self.family = family
        self.task = family.task
        self.model = family.task.model
        self.ranges = ranges
        self._moments = moments
        self._unreached = unreached
        searched = RangeSearch(self.task)
        self.cell_switch = PlanSwitch(
            self.model,
            spec.quantizer,
            ranges,
            bounds=bounds,
            moments=moments,
            searched=searched,
            is_blocked=spec.is_blocked,
        )
        self.switch = self.cell_switch
        if spec.quantizer.is_sequential:
            self.switch = SequentialSwitch(
                self.task,
                spec.quantizer,
                ranges,
                bounds=bounds,
                moments=moments,
                searched=searched,
                cache_nbytes=cache_nbytes // 2,
                is_blocked=spec.is_blocked,
            )
        self._stopwatch = Stopwatch(self.model.device)
        self._raced = ""
        calibration = CacheCalibration(
            self.task, self.cell_switch, cache_forms(spec.space), spec.data.seed
        )
        self.switch.cache = self.cell_switch.cache = calibration
        self.latency_meters = self._build_latency_meters(latencies)
        # Hashing the samples takes a while: only what is written to files needs it.
        identity = self.identity if features is not None else ""
        store = FeatureStore(identity, features, MEMORY_NBYTES if cache_nbytes else 0)
        self._distiller = Distiller(
            self.task,
            self.switch,
            spec.quantizer,
            spec.search.seed,
            self._stopwatch,
            folder=features,
            features=identity,
        )
        self.switch.distil = self.cell_switch.distil = self._distiller.trained
        self.scorer = family.scorer(
            ScoringContext(spec, self.switch, self._stopwatch, store, cache_nbytes)
        )

    def _build_latency_meters(self, file: Path | None) -> tuple[LatencyMeter, ...]:
        if not self.spec.is_timed:
            return ()
        return self.family.latency_meters(self.cell_switch, self.spec, LatencyTable(file=file))

    @cached_property
    def identity(self) -> str:
        """The hash of all that a configuration's features and recovery depend on."""
        return features_key(
            self.spec,
            model=self.model.identity,
            samples=self.task.identity,
            device_type=self.model.device.type,
            bounds=bounds_to_json(self.switch.bounds),
            ranges=range_table(self.ranges),
        )

    @classmethod
    def from_spec(
        cls,
        spec: JobSpec,
        bounds: LearnedBounds = MappingProxyType({}),
        features: Path | None = None,
        inspector: Inspector | None = None,
        latencies: Path | None = None,
    ) -> Self:
        """Loads a job's model and task, and calibrates the model for every clip of the job.

        Args:
            spec: The job.
            bounds: What visual-encoder optimisation learned.
            features: Folder for features that memory has no room for.
            inspector: Opens each sample once; None remembers nothing.
            latencies: The file that remembers kernels' times.

        Raises:
            BitfrontError: The model or the data cannot be loaded.
        """
        model = load_model(spec.model, spec.resources.memory)
        family = load_family(spec.data, model, inspector)
        clips = sorted({1.0, *spec.space.clips})
        refuse_limits(spec, model)
        ranges, unreached = with_unreached_experts(model, calibrate(family.task, clips))
        moments: Mapping[str, Tensor] = {}
        rounding = spec.quantizer.rounding
        if rounding is not Rounding.NEAREST:
            is_open = rounding is Rounding.AUTO
            moments = measure_moments(family.task, where_possible=is_open)
        return cls(
            spec,
            family,
            ranges,
            bounds=bounds,
            features=features,
            moments=moments,
            latencies=latencies,
            unreached=unreached,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What no calibration token reaches, and where `rounding: auto` takes a lesser method.

        The latter is known after a trial.
        """
        if self.spec.quantizer.rounding is not Rounding.AUTO:
            return self._unreached
        sequential = self.switch.notes if isinstance(self.switch, SequentialSwitch) else ()
        return (*self._unreached, *missing_note(self.model, self._moments), *sequential)

    def train(
        self,
        configuration: Configuration,
        checkpoint: SharedPath,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> Iterator[IntermediateValue]:
        """Trains what the configuration asks for, and yields its error on the way.

        A distilled plan comes first, then P4Q on it; steps are counted on. First of all comes the
        plan as it is rounded, before anything is trained. A caller that has seen enough stops
        iterating. After the last rung all is finished and known, so that `evaluate` measures it.

        Args:
            configuration: Its plan is distilled, or it has a recovery.
            checkpoint: Where the training is saved as it goes, and resumed from.
            is_ending: Asked after each step: must the training be saved at once, and end?

        Raises:
            Interrupted: The training was told to end; it is saved.
        """
        if configuration.plan.distil is not None:
            yield from self._distil(configuration.plan, checkpoint, is_ending)
        if configuration.recovery is not None:
            yield from self._recover(configuration, checkpoint, is_ending)

    def _distil(
        self, plan: Plan, checkpoint: SharedPath, is_ending: Callable[[], bool]
    ) -> Iterator[IntermediateValue]:
        """Trains a plan that is not known, and yields its error on the way."""
        distil = plan.distil
        assert distil is not None
        if self._distiller.known(plan) is not None:
            return
        saved = self.checkpoint(Configuration(plan), checkpoint, is_ending)
        if not saved.exists:
            yield IntermediateValue(0, self._error(Configuration(plan.rounded)))
        training = self._distiller.begin(plan)
        saved.resume(training)
        for step in distil.rungs[1:]:
            if step <= training.steps:
                continue
            advance(training, step, saved)
            so_far = replace(plan, distil=replace(distil, until=step))
            self._distiller.keep(so_far, training.trained())
            yield IntermediateValue(step, self._error(Configuration(so_far)))
        advance(training, distil.steps, saved)
        self._distiller.keep(plan, training.trained())
        saved.remove()

    def _recover(
        self, configuration: Configuration, checkpoint: SharedPath, is_ending: Callable[[], bool]
    ) -> Iterator[IntermediateValue]:
        """Trains a recovery on its plan, and yields its error on the way."""
        recovery, distil = configuration.recovery, configuration.plan.distil
        assert recovery is not None
        before = 0 if distil is None else distil.steps
        saved = self.checkpoint(configuration, checkpoint, is_ending)
        if not saved.exists:
            yield IntermediateValue(before, self._error(Configuration(configuration.plan)))
        training = self.scorer.begin(configuration)
        saved.resume(training)
        for step in recovery.rungs[1:]:
            if step <= training.steps:
                continue
            advance(training, step, saved)
            self.scorer.keep(configuration, training.stored())
            yield IntermediateValue(before + step, self._error(configuration))
            # Whoever looked at the value may have put another plan onto the model.
            self.switch.to(configuration.plan)
        advance(training, recovery.steps, saved)
        self.scorer.keep(configuration, training.stored())

    def _error(self, configuration: Configuration) -> float:
        """The error on the selection split; NaN where the model's output is not finite."""
        return self.scorer.figures(configuration, SplitName.SELECTION)[Objective.ERROR.value]

    def checkpoint(
        self,
        configuration: Configuration,
        path: SharedPath,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> RecoveryCheckpoint:
        """Where the training of a configuration's recovery is saved, at the job's interval."""
        identity = recovery_checkpoint_key(self.identity, configuration)
        return RecoveryCheckpoint(path, identity, self.spec.search.checkpoint_s, is_ending)

    def costs(self, configuration: Configuration) -> dict[str, float]:
        """Those of the job's objectives that follow from the configuration alone, by name.

        Afterwards the model may have the configuration's plan.
        """
        known = self._costs(configuration)
        return {o.value: known[o.value] for o in self.spec.objectives if o.value in known}

    def _costs(self, configuration: Configuration) -> dict[str, float]:
        """Those of all figures that are counted, not measured."""
        counted = {
            Objective.NBYTES.value: float(sum(self.nbytes(configuration).values())),
            "bits_per_weight": bits_per_weight(self.model, configuration),
            Objective.BIT_OPERATIONS.value: bit_operations(self.model, configuration),
        }
        if self.spec.context_tokens is not None:
            kept = cache_nbytes(self.cache_places, configuration.plan, self.spec.context_tokens)
            counted[Objective.KV_NBYTES.value] = float(kept)
            whole = counted[Objective.NBYTES.value] + kept
            counted[Objective.MEMORY_NBYTES.value] = whole
        if self.spec.needs(Objective.ACTIVATION_NBYTES):
            held = self._activations.peak_nbytes(configuration.plan)
            counted[Objective.ACTIVATION_NBYTES.value] = float(held)
        return counted

    def nbytes(self, configuration: Configuration) -> dict[str, int]:
        """The bytes of the configuration's packed checkpoint, or of its blocks, part by part."""
        if self.spec.is_blocked:
            return blocked_parts(self.model, configuration.plan)
        return self.packed_nbytes(configuration)

    def packed_nbytes(self, configuration: Configuration) -> dict[str, int]:
        """The bytes of the configuration's packed checkpoint, part by part."""
        quantizer = self.spec.quantizer
        return configuration_nbytes(self.model, configuration, quantizer, self.task.class_count)

    def evaluate(
        self, configuration: Configuration, split: SplitName = SplitName.SELECTION
    ) -> Evaluation:
        """The job's objectives for a configuration, and further figures.

        `error` is the share of the split's samples that come out wrong: an image whose own
        class is not the nearest among all, or a question whose greedy answer is not among the
        right ones; `divergence` is the mean KL of the predictions from those of full precision. The
        metrics hold every figure that is known, objectives included: `error` and `divergence`
        with their standard errors (`error_se`, `divergence_se`), `loss_nats` and what else the
        scorer measures, `nbytes` with its parts,
        `bits_per_weight`, `bit_operations`, the seconds of each stage, and what came from the
        caches (1 or 0).

        Raises:
            InvalidMetric: A figure is not finite.
            SpecError: The plan names an unknown layer or a clip that was not calibrated, or
                the configuration has a recovery that the model cannot have.
            UnavailableDevice: The job asks for a latency that cannot be measured here.
        """
        for layer, _ in configuration.plan:
            self.model.modules(layer)  # refuses an unknown one, whatever the caches know
        self.switch.fitted(configuration.plan)  # refuses one of another model as well
        self._begin(configuration)
        self._raced = ""
        score = self.scorer.score(configuration, split)
        figures = {**score.figures, **self._costs(configuration)}
        for meter in self.latency_meters:
            with self._stopwatch.timed("latency"):
                figures[meter.stage.figure.value] = meter.seconds(configuration)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise InvalidMetric(name, str(value))
        values = {objective.value: figures[objective.value] for objective in self.spec.objectives}
        nbytes = self.nbytes(configuration)
        figures |= {f"nbytes.{part}": float(count) for part, count in nbytes.items()}
        return Evaluation(values, figures | self._stopwatch.figures(), score.samples)

    def race(self, configuration: Configuration) -> Iterator[PartialScore]:
        """What comes out for more and more selection samples; `evaluate` then runs the rest.

        The figures of `evaluate` are the same to the last bit. Nothing of what is trained, since a
        recovery is worth what it is at its end, nor of an output that is not finite.
        """
        if configuration.trained_by:
            return
        self._begin(configuration)
        self._raced = configuration.digest
        for reached in self.scorer.course(configuration.plan, SplitName.SELECTION):
            if not bool(reached.divergence.isfinite().all()):
                return
            yield replace(reached, divergence=reached.divergence.clamp_min(0))

    def _begin(self, configuration: Configuration) -> None:
        """Starts the stopwatch and rounds the plan, unless a race has done so."""
        if self._raced != configuration.digest:
            self._stopwatch.reset()
            self._round(configuration.plan)

    def _round(self, plan: Plan) -> None:
        """Trains the tensors of a plan, or chooses weights that depend on each other; times it."""
        if plan.distil is not None:
            self._distiller.trained(plan)
        if plan.distil is not None or not isinstance(self.switch, SequentialSwitch):
            return
        decided = self.switch.decided
        with self._stopwatch.timed("rounding"):
            self.switch.to(plan)
        self._stopwatch.hit("rounding", self.switch.decided == decided)

    @cached_property
    def _activations(self) -> ActivationMemory:
        streams = self.task.streams(SplitName.SELECTION)
        return ActivationMemory(self.model, streams, self.cell_switch)
