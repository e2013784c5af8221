"""Building an artefact: written beside its place, verified, recorded, and only then put there."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from bitfront.errors import FailedBuild, InvalidModel, SpecError
from bitfront.failpoints import failpoint
from bitfront.files import file_digest, sync_folder
from bitfront.plan import Configuration, Plan
from bitfront.targets import target_of
from bitfront.trial import Trial, TrialState
from objectives.evaluation.card import write_card
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.packed import write_packed
from objectives.evaluation.speed import WriteReference
from objectives.evaluation.verification import Verification, verify
from service.study.heartbeat import is_running
from storage.artefacts import ArtefactRecord
from storage.records import StudyRecord
from storage.store import Store

PACKED, ONNX, OPENVINO, GGUF = "packed", "onnx", "openvino", "gguf"

Writer = Callable[[Evaluator, Configuration, Path, Mapping[str, object]], dict[str, object]]
"""What writes an artefact's files into a folder, and gives the card."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)\.partial")


def check_place(out: Path) -> None:
    """Refuses a folder that is there already.

    Raises:
        SpecError: It is, or the folder that it would lie in cannot be made.
    """
    if out.exists() or out.is_symlink():
        raise SpecError(f"{out} is there already: remove it, or name another folder with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{out} cannot be made: {error.strerror or error}") from error


def check_trial(study: str, trial: Trial) -> None:
    """Refuses a trial that was not measured, or that no artefact can hold.

    Raises:
        SpecError: It is not complete, or its KV cache has codes.
    """
    if trial.state is not TrialState.COMPLETE:
        raise SpecError(
            f"trial {trial.number} of study {study!r} is {trial.state}, so nothing is promised of "
            f"it: name a complete one, as 'bitfront front {study}' lists them"
        )
    if trial.configuration.plan.cache:
        raise SpecError(
            f"trial {trial.number} of study {study!r} rounds its KV cache, which no artefact does: "
            "put it onto the model in Python with 'apply', or build a trial of a job without "
            "space.kv_cache"
        )


@dataclass(frozen=True, slots=True)
class Built:
    """An artefact that has its name.

    Attributes:
        card: What it says of itself.
        verification: What it was seen to do.
    """

    card: Mapping[str, object]
    verification: Verification


def writer(target: str, accuracy_level: int) -> Writer:
    """What writes an artefact of a kind.

    Raises:
        SpecError: A package that this takes is not installed.
    """
    runtime = target_of(target)
    if runtime.missing:
        raise SpecError(
            f"--to {target} needs {' and '.join(runtime.missing)}: "
            f"'pip install bitfront[{runtime.extra}]'"
        )
    # Only then can these be imported.
    if target == PACKED:
        return write_packed
    if target == ONNX:
        from objectives.evaluation.onnx_models import write_onnx

        return partial(write_onnx, accuracy_level=accuracy_level)
    if target == OPENVINO:
        from objectives.evaluation.openvino_models import write_openvino

        return write_openvino
    if target == GGUF:
        from objectives.evaluation.gguf_models import write_gguf

        return write_gguf
    from objectives.evaluation.compressed_models import write_compressed

    return write_compressed


def build_artefact(
    evaluator: Evaluator,
    study: StudyRecord,
    trial: Trial,
    out: Path,
    store: Store,
    *,
    target: str = PACKED,
    write: Writer = write_packed,
    reference: bool = True,
) -> Built:
    """Builds a trial's artefact into a folder, which is not there yet.

    Whatever ends this before its end leaves no folder of that name; what it leaves beside it, the
    next build removes.

    Args:
        evaluator: With the model and data that the trial was measured on.
        study: The study.
        trial: The trial.
        out: The folder.
        store: Where it is recorded.
        target: What it is built as.
        write: What writes it.
        reference: Whether the model at full precision is written too, timed in turns with the
            artefact, and removed.

    Raises:
        FailedBuild: The artefact is not what was measured, or cannot be written.
        InvalidModel: The model's architecture is not known, or weights are in number formats that
            the target's files have no place for.
    """
    out = out.absolute()
    configuration = trial.configuration
    _refuse_other_formats(target, trial)
    _remove_left_over(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with _sentences(out):
        temporary.mkdir()
    try:
        with _sentences(out):
            card = write(evaluator, configuration, temporary, _facts(evaluator, study, trial))
            failpoint("build.written")
            beside = partial(_write_reference, evaluator, write) if reference else None
            found = _verified(evaluator, configuration, temporary, trial, target, beside)
            card["verification"] = found.to_dict()
            write_card(card, temporary)
            _sync(temporary)
            store.put_artefact(study.name, _record(out, temporary, trial, found, target))
            failpoint("build.recorded")
            temporary.rename(out)
            sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    failpoint("build.placed")
    return Built(card, found)


def _refuse_other_formats(target: str, trial: Trial) -> None:
    held = target_of(target).number_formats
    others = {one.format for _, one in trial.configuration.plan if one.format} - held
    if others:
        raise InvalidModel(
            f"--to {target} has no place for {' and '.join(sorted(others))}, in which trial "
            f"{trial.number} has weights: name a trial with integer weights, or build it with "
            f"--to {PACKED}"
        )


def _write_reference(evaluator: Evaluator, write: Writer, folder: Path) -> None:
    """Writes the model that no plan changes, for the same target."""
    write(evaluator, Configuration(Plan(())), folder, {})
    failpoint("build.reference")


def _verified(
    evaluator: Evaluator,
    configuration: Configuration,
    folder: Path,
    trial: Trial,
    target: str,
    write_reference: WriteReference | None,
) -> Verification:
    error = trial.values["error"]
    found = verify(evaluator, configuration, folder, error, target, write_reference)
    failpoint("build.verified")
    found.check()
    return found


def _facts(evaluator: Evaluator, study: StudyRecord, trial: Trial) -> dict[str, object]:
    """What the card says of where the artefact comes from."""
    spec = study.spec
    return {
        "study": study.name,
        "trial": trial.number,
        "model": {
            "source": spec.model.source.value,
            "name": spec.model.name,
            "identity": evaluator.model.identity,
        },
        "provenance": dict(study.provenance),
        "quantizer": spec.quantizer.model_dump(mode="json"),
        "configuration": trial.configuration.to_dict(),
        "measured": dict(trial.values),
    }


def _record(
    out: Path, folder: Path, trial: Trial, found: Verification, target: str
) -> ArtefactRecord:
    return ArtefactRecord(
        trial=trial.number,
        target=target,
        path=str(out),
        nbytes=found.tensors_nbytes,
        files=digests(folder),
        verification=found.to_dict(),
    )


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


def artefact_state(record: ArtefactRecord) -> str:
    """Whether an artefact is still what was built: `whole`, `missing`, or what is damaged."""
    folder = Path(record.path)
    if not folder.is_dir():
        return "missing"
    try:
        found = digests(folder)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    wrong = [name for name, known in record.files.items() if found.get(name) != known]
    return f"damaged: {', '.join(wrong)}" if wrong else "whole"


def read_example(out: Path) -> str:
    """The script that shows how the artefact in a folder is used."""
    return (out / "example.py").read_text(encoding="utf-8")


@contextmanager
def _sentences(out: Path) -> Iterator[None]:
    """Says in a sentence what cannot be written; nothing else is caught."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FailedBuild(f"{out} cannot be built: {reason}") from error
    except SafetensorError as error:
        raise FailedBuild(f"{out} cannot be built: {error}") from error


def _remove_left_over(out: Path) -> None:
    """Removes what builds of the same folder left that were killed."""
    for path in out.parent.glob(f".{out.name}.*.partial"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and match["name"] == out.name and not is_running(int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Brings a folder's files to the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
