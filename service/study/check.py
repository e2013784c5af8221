"""The check before a study: all that is wrong with a job, in one list, before there is one."""

from collections.abc import Callable, Set
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final

from bitfront.errors import BitfrontError, InvalidModel, SpecError
from bitfront.job import Examined
from bitfront.job.allowed_roots import check_allowed_roots
from bitfront.job.document import Place
from bitfront.processes import FRESH
from bitfront.spec import DataSource, JobSpec
from bitfront.targets import DeploymentTarget
from bitfront.units import percent_text
from service.database_url import file_folder
from service.study.room import check_disk, check_memory
from service.views.progress import Reporter


class Depth(IntEnum):
    """How far a job is looked into before there is a study."""

    FILE = 0
    DATA = 1
    MODEL = 2
    MEASURED = 3


def refuse_mistakes(
    examined: Examined, depth: Depth, reporter: Reporter, url: str | None = None
) -> None:
    """Tells what a job's data are, and refuses one that cannot run.

    Args:
        examined: The job.
        depth: How far it is looked into.
        reporter: Hears of the progress, of notes and of warnings; its context is open.
        url: The database that the study would be in, if there is to be one.

    Raises:
        SpecError: The job has mistakes or problems; all are named, a line each.
    """
    spec = examined.spec
    if spec is None:
        raise SpecError(examined.told())
    opens = spec.data.source is not DataSource.REFERENCE and "data" not in examined.unsure
    if opens and depth >= Depth.DATA:
        total = sum(spec.data.samples.model_dump().values())
        reporter.stage("check the samples", total=total)
    findings = check_job(
        spec,
        trust=depth < Depth.DATA,
        unsure=examined.unsure,
        folder=None if url is None else file_folder(url),
        on_progress=reporter.advance,
    )
    if depth >= Depth.MODEL and not findings.problems and not examined.mistakes:
        if depth is Depth.MEASURED:
            check_full_precision(spec, findings, lambda name: reporter.stage(name, total=None))
        elif not spec.is_bundled:
            reporter.stage("load the model", total=None)
            check_model(spec, findings)
    for note in findings.notes:
        reporter.note(note)
    for warning in findings.warnings:
        reporter.warn(warning)
    if findings.problems or examined.mistakes:
        raise SpecError(examined.told(findings.problems))


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        problems: What has to be corrected, each with the place in the job that it is about.
        warnings: What may be a mistake.
        notes: What a person may want to know before a search.
    """

    problems: list[tuple[Place, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, place: Place, check: Callable[[], object]) -> None:
        """Runs a check; one of our own errors becomes a problem at the place."""
        try:
            check()
        except BitfrontError as error:
            self.problems.append((place, str(error)))


_KERNEL_SECTIONS: Final = frozenset({"model", "quantizer", "space", "objectives", "constraints"})


def check_job(
    spec: JobSpec,
    *,
    trust: bool = False,
    unsure: Set[str] = frozenset(),
    folder: Path | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Looks at paths, data, samples and kernels of a job, all of it, before there is a study.

    Args:
        spec: The job.
        trust: Leaves the samples unopened, because that was done before.
        unsure: Sections that are not as the person meant them, so that nothing follows from them.
        folder: Where the database is to lie as a file; None for another, or for none.
        on_progress: Hears how many more samples have been looked at.
    """
    findings = Findings()
    if not {"data", "model"} & unsure:
        findings.attempt(("data", "path"), lambda: check_allowed_roots(spec))
    may_read = not findings.problems or spec.data.source is DataSource.REFERENCE
    if not _KERNEL_SECTIONS & unsure:
        findings.attempt(("model", "device"), lambda: _check_kernels(spec, findings))
    if "model" not in unsure:
        findings.attempt(("model", "name"), lambda: check_memory(spec.model))
    if may_read and "tracking" not in unsure:
        findings.attempt(("tracking", "mlflow"), lambda: _check_tracking(spec))
    if folder is not None and "stop" not in unsure:
        findings.attempt(("stop", "trials"), lambda: check_disk(spec, folder))
    if may_read and "data" not in unsure:
        findings.attempt(
            ("data", "path"), lambda: _check_data(spec, findings, trust=trust, hear=on_progress)
        )
    return findings


def check_model(spec: JobSpec, findings: Findings) -> None:
    """Loads the model in a process of its own, which gives its memory back; see `load_and_look`."""

    def load() -> None:
        from search.keep import check_keep
        from search.ties import ties_of
        from workers.process.model_check import load_and_look

        try:
            with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
                layers = pool.submit(load_and_look, spec).result()
        except BrokenProcessPool as error:
            raise InvalidModel(
                f"the process that loaded {spec.model.name} was ended from outside, as systems do "
                "where memory runs out: use a smaller model or a larger machine"
            ) from error
        check_keep(layers, spec.space, ties_of(spec.target, layers))

    findings.attempt(("model",), load)


def check_full_precision(
    spec: JobSpec, findings: Findings, on_stage: Callable[[str], None]
) -> None:
    """Loads the model here and measures it at full precision; what is wrong is added."""

    def load() -> None:
        from search.keep import check_keep
        from search.ties import ties_of
        from workers.process.model_cache import inspected
        from workers.scheduling.worker_config import WorkerConfig

        found = inspected(WorkerConfig(spec), on_stage)
        check_keep(found.layers, spec.space, ties_of(spec.target, found.layers))
        findings.warnings += found.warnings
        error = percent_text(found.full.values["error"])
        findings.notes.append(f"{len(found.layers)} layers; full precision: error {error}")

    findings.attempt(("model",), load)


def _check_kernels(spec: JobSpec, findings: Findings) -> None:
    if not spec.is_timed:
        return
    if spec.target is not DeploymentTarget.ANY:
        from objectives.cost.runtimes.choose import timed_target

        findings.attempt(("target",), partial(timed_target, spec))
        return
    from objectives.cost.unmeasured import widths_without_kernel

    missing = widths_without_kernel(spec, spec.model.device)
    if missing:
        findings.problems.append(
            (
                ("space", "weight_bits"),
                f"latency_s: no kernel multiplies at {', '.join(missing)}: search weight_bits and "
                "activation_bits of 8 and 8 or 16 and 16 (on a CPU also 4 and 16), in groups of 0, "
                "set target: onnxruntime or openvino, which have more kernels, or put "
                "bit_operations in place of latency_s among the objectives",
            )
        )


def _check_tracking(spec: JobSpec) -> None:
    if spec.tracking.mlflow is None:
        return
    from service.study.mlflow_mirror import check_tracking

    check_tracking(spec.tracking.mlflow)


def _check_data(
    spec: JobSpec, findings: Findings, *, trust: bool, hear: Callable[[int], None]
) -> None:
    from objectives.data.inspection import Inspector
    from objectives.data.preview import preview_data
    from workers.process.cache_folder import inspection_file

    inspector = None if trust else Inspector(inspection_file(), on_progress=hear)
    preview = preview_data(spec.data, inspector)
    findings.notes += preview.notes
    findings.warnings += preview.warnings
