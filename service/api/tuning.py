"""A recovery for one given plan: trained here, or searched on workers, and kept where it helps."""

import json
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bitfront.errors import SpecError
from bitfront.files import write_whole
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.units import size_text

if TYPE_CHECKING:
    from bitfront.spec import JobSpec
    from bitfront.tuning import TuningSample
    from bitfront.vlm import LayeredModel
    from objectives.evaluation.evaluator import Evaluator
    from service.api.connection import Connection

# What trains takes seconds to import, which no refusal needs.

STEPS: Final = 200
"""Optimiser steps where none are named: a person tunes longer than a trial does."""
USUAL: Final = Recovery(context_length=8, reduction=2, distillation=4.0, steps=STEPS)
"""What is trained for a plan without a recovery of its own."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    Attributes:
        selection_error: The error on the selection split, `quantized`, `tuned` and in
            `full_precision`.
        test_error: The same on the test split; empty where one recovery was trained here.
        nbytes: What plan and recovery take, by part.
        folder: Where the recovery is; None where the plan does no worse without it, and it was
            not to be kept all the same.
        samples: What a search tried, by number.
    """

    selection_error: Mapping[str, float]
    test_error: Mapping[str, float]
    nbytes: Mapping[str, int]
    folder: Path | None
    samples: "Mapping[int, TuningSample]" = field(default_factory=dict)


def chosen_recovery(stored: Recovery | None, settings: Mapping[str, object]) -> Recovery:
    """The settings: those given, else the trial's own, else the usual ones; never its steps.

    Raises:
        SpecError: There is no such setting, or it cannot be that.
    """
    known = [one.name for one in fields(Recovery)]
    for name in settings:
        if name not in known:
            raise SpecError(f"a recovery has no setting {name!r}: it has {', '.join(known)}")
    base = USUAL if stored is None else replace(stored, steps=STEPS)
    return replace(base, **settings).canonical  # type: ignore[arg-type]  # its own check follows


def refuse_full_folder(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder that holds a recovery.

    Raises:
        SpecError: It does.
    """
    from objectives.evaluation.tuned import CARD

    if (out / CARD).exists() and not overwrite:
        raise SpecError(f"{out} holds a tuned recovery already: give --overwrite, or another --out")


def tune_plan(
    job: Path,
    plan: str,
    out: Path,
    settings: Mapping[str, object],
    *,
    max_nbytes: float | None,
    keep_worse: bool,
) -> Tuned:
    """Trains a recovery for a plan of a person's own.

    Args:
        job: The job's file, which names model and data.
        plan: A precision for all layers, such as `w4a8`, or a JSON file.
        out: As for `train_here`.
        settings: What is given of the recovery.
        max_nbytes: As for `train_here`.
        keep_worse: As for `train_here`.
    """
    from bitfront.job import load_job
    from objectives.evaluation.evaluator import Evaluator
    from workers.process.cache_folder import feature_folder

    spec = load_job(job, {})
    check_recovers(spec)
    evaluator = Evaluator.from_spec(spec, features=feature_folder())
    configuration = Configuration(_read_plan(plan, evaluator), chosen_recovery(None, settings))
    return train_here(evaluator, configuration, out, max_nbytes=max_nbytes, keep_worse=keep_worse)


def check_recovers(spec: "JobSpec") -> None:
    """Refuses a job whose task P4Q has no loss for.

    Raises:
        SpecError: It has none.
    """
    if spec.task is not None and not spec.task.recovers:
        raise SpecError(spec.task.without_recovery)


def train_here(
    evaluator: "Evaluator",
    configuration: Configuration,
    out: Path,
    *,
    max_nbytes: float | None,
    keep_worse: bool,
) -> Tuned:
    """Trains a configuration's recovery in view of the person; what was ended is resumed.

    Args:
        evaluator: The model at its task.
        configuration: The plan and the recovery.
        out: The folder for tensors and card, made if it is missing.
        max_nbytes: What plan and recovery may take together.
        keep_worse: Whether it is kept even if the plan does no worse without it.

    Raises:
        SpecError: They take more.
    """
    from objectives.data.split_name import SplitName
    from objectives.evaluation.tuned import recovery_errors, tuned_files
    from objectives.recovery.checkpointed_training import advance
    from service.views.progress import reporter_for
    from workers.process.model_cache import package_versions

    assert configuration.recovery is not None
    nbytes = evaluator.nbytes(configuration)
    _refuse_larger(sum(nbytes.values()), max_nbytes)
    steps = configuration.recovery.steps
    saved = evaluator.checkpoint(configuration, out / "checkpoint.safetensors")
    with reporter_for(sys.stderr) as reporter:
        training = evaluator.scorer.begin(configuration)
        saved.resume(training)
        reporter.stage("tune", total=steps)
        reporter.advance(training.steps)
        advance(training, steps, saved, lambda _loss: reporter.advance())
    evaluator.scorer.keep(configuration, training.stored())
    errors = recovery_errors(evaluator, configuration, SplitName.SELECTION)
    if not _helps(errors, keep_worse=keep_worse):
        saved.save(training)  # kept all the same, the same command has nothing left to train
        return Tuned(errors, {}, nbytes, None)
    for name, content in tuned_files(evaluator, configuration, errors, package_versions()).items():
        write_whole(out / name, content)
    saved.remove()
    return Tuned(errors, {}, nbytes, out)


def search_recovery(
    connection: "Connection",
    study: str,
    configuration: Configuration,
    out: Path,
    *,
    samples: int,
    fixed: Set[str],
    max_nbytes: float | None,
    keep_worse: bool,
    workers: int | None,
    address: str | None,
) -> Tuned:
    """Searches a recovery's settings in view of the person, and writes the best one.

    Args:
        connection: The database; what the samples show is kept there.
        study: The study that the plan is of.
        configuration: The plan, and the recovery that is trained first.
        out: As for `train_here`.
        samples: How many recoveries are tried.
        fixed: Settings that are not searched.
        max_nbytes: As for `train_here`.
        keep_worse: As for `train_here`.
        workers: Samples that are trained side by side; None for what the job says.
        address: A Ray cluster; None for this machine.

    Raises:
        Interrupted: It was told to end; the same call resumes it.
    """
    from service.database_url import patience_s
    from service.study.stored_configuration import bounds_of
    from service.study.submission import is_cluster
    from service.study.tuning import Wish, tune_study
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    if is_cluster(address):
        raise SpecError(
            "the tuned recovery is written where the command runs: run it on one of the cluster's "
            "machines, with --address auto or HOST:PORT"
        )
    assert configuration.recovery is not None
    store = connection.store()
    wish = Wish(
        plan=configuration.plan,
        bounds=bounds_of(store, store.study(study)),
        first=configuration.recovery,
        fixed=frozenset(fixed),
        samples=samples,
        max_nbytes=None if max_nbytes is None else int(max_nbytes),
    )
    with reporter_for(messages()) as reporter:
        found = tune_study(
            study,
            wish,
            connection.url,
            reporter=reporter,
            workers=workers,
            address=address,
            patience_s=patience_s(),
        )
    best = found.recovery
    folder = out if _helps(best.selection_error, keep_worse=keep_worse) else None
    if folder is not None:
        for name, content in best.files.items():
            write_whole(folder / name, content)
    return Tuned(best.selection_error, best.test_error, best.nbytes, folder, found.samples)


def _helps(errors: Mapping[str, float], *, keep_worse: bool) -> bool:
    return keep_worse or errors["tuned"] < errors["quantized"]


def _refuse_larger(nbytes: int, limit: float | None) -> None:
    """Refuses a recovery that takes its plan above the size that was asked for."""
    if limit is not None and nbytes > limit:
        raise SpecError(
            f"with this recovery the plan takes {size_text(nbytes)} ({nbytes:,} bytes), above "
            f"--max-nbytes {limit:,.0f}: give a larger --reduction, a smaller --context-length or "
            "fewer --adapter-bits, or name a smaller plan with --trial"
        )


def _read_plan(text: str, evaluator: "Evaluator") -> Plan:
    """A plan as a person gives it.

    Raises:
        SpecError: It is neither a precision nor a file that holds a plan.
    """
    from bitfront.precision import Precision
    from search.seeds import uniform_precision

    if not Path(text).is_file():
        wanted = Precision.parse(text)
        model: LayeredModel = evaluator.model
        space, quantizer = evaluator.spec.space, evaluator.spec.quantizer
        if not wanted.format and not wanted.group:
            own = space.of_width(wanted.weight_bits)[0]
            wanted = replace(own, activation_bits=wanted.activation_bits)
        return Plan.of(
            {
                layer.name: uniform_precision(layer, wanted, space, quantizer)
                for layer in model.layers
            }
        )
    try:
        return Plan.from_dict(json.loads(Path(text).read_text()))
    except (ValueError, AttributeError, TypeError) as error:
        raise SpecError(
            f"{text} holds no plan, which is a JSON object of layer names and precisions "
            f'such as "w4a8": {error}'
        ) from error
