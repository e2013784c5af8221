"""What a study takes, as a person reads it before it starts."""

from collections.abc import Iterator
from dataclasses import dataclass

from bitfront.spec import CellSelection, ErrorMeasure, Granularity, JobSpec
from bitfront.units import duration_text, size_text


@dataclass(frozen=True, slots=True)
class DryRun:
    """A study's size and its estimated costs on this machine.

    Attributes:
        layers: How many there are to quantize.
        weights: How many weights they have.
        blocks: How many blocks the partition makes of them.
        options: The most options that a block has.
        log10_plans: The plans of the space before pruning, as a logarithm.
        cells: How many the profile measures at most: screening leaves some out.
        start_s: Loading, calibration, full precision and entropies, as measured.
        cell_s: One cell.
        trials: How many at most.
        trial_s: One trial without a recovery.
        recovery_s: What the longest recovery adds to a trial; None where none is searched.
        workers: How many share cells and trials.
        worker_nbytes: Memory of a worker, estimated.
        disk_nbytes: What the trials take in the database, estimated.
    """

    layers: int
    weights: int
    blocks: int
    options: int
    log10_plans: float
    cells: int
    start_s: float
    cell_s: float
    trials: int
    trial_s: float
    recovery_s: float | None
    workers: int
    worker_nbytes: int
    disk_nbytes: int

    @property
    def profile_s(self) -> float:
        """All cells, with as many processors as workers."""
        return self.cells * self.cell_s / self.workers

    @property
    def trials_s(self) -> tuple[float, float]:
        """All trials without and with the longest recovery in each of them."""
        alone = self.trials * self.trial_s / self.workers
        return alone, alone + self.trials * (self.recovery_s or 0.0) / self.workers


def dry_run_lines(estimate: DryRun, spec: JobSpec) -> Iterator[str]:
    """What a person reads of it, and what would shorten it."""
    e = estimate
    yield f"{e.layers} layers with {e.weights:,} weights, in {e.blocks} blocks"
    yield (
        f"up to {e.options} options a block, 10^{e.log10_plans:.1f} plans; "
        f"the profile measures up to {e.cells:,} cells"
    )
    yield f"start: {duration_text(e.start_s)} in every process that loads the model"
    yield (
        f"profile: {duration_text(e.profile_s)} at most ({1000 * e.cell_s:.0f} ms a cell, "
        f"{e.workers} at once)"
    )
    if len(spec.space.clips) > 1 or spec.profile.vision is not None:
        yield "not counted: the search of clips and the optimisation of the vision tower"
    alone_s, recovered_s = e.trials_s
    if e.recovery_s is None:
        yield f"trials: {duration_text(alone_s)} ({e.trials} of {e.trial_s:.2g} s each)"
    else:
        yield (
            f"trials: {duration_text(alone_s)} without recoveries, {duration_text(recovered_s)} if "
            f"all have the longest one ({e.trials} of {e.trial_s:.2g} s, a recovery "
            f"{e.recovery_s:.2g} s)"
        )
    yield (
        f"memory: {size_text(e.worker_nbytes)} a worker; disk: {size_text(e.disk_nbytes)} in the "
        "database"
    )
    yield from (f"shorter with {hint}" for hint in _hints(estimate, spec))


def _hints(estimate: DryRun, spec: JobSpec) -> Iterator[str]:
    profile_s, (_, trials_s) = estimate.profile_s, estimate.trials_s
    if profile_s >= trials_s:
        if spec.partition.granularity is not Granularity.LAYER:
            yield "partition.granularity: layer, which measures no joint options"
        if spec.profile.cells is CellSelection.ALL:
            yield "profile.cells: adaptive, which measures only what the program's plans use"
        if spec.profile.measure is ErrorMeasure.OUTPUT_KL:
            yield "profile.measure: gauss_newton, which takes a pass or two for all cells"
        if spec.space.formats:
            yield "fewer of space.formats and space.activation_bits"
        else:
            yield "fewer of space.weight_bits, space.activation_bits and space.groups"
        yield f"data.samples.calibration below {spec.data.samples.calibration}"
    else:
        if spec.space.recovery is not None:
            yield "fewer steps in space.recovery, or none: 'bitfront tune' trains P4Q later"
        if not spec.search.race:
            yield "search.race: true, which stops proposals of the sampler that have surely lost"
        yield f"stop.trials below {spec.stop.trials}"
        yield f"data.samples.selection below {spec.data.samples.selection}"
    yield f"search.workers above {spec.search.workers}, where there are processors for them"
