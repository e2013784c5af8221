"""Tunings as a person runs them: `bitfront tune --samples` in a process of its own, on real Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Trial
from bitfront.tuning import TuningSample
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.rungs import climb
from storage.store import open_store
from tests.support.store_samples import complete

LONGEST_S = 800


@dataclass(frozen=True, slots=True)
class Tuning:
    """A study with one trial, and the command that tunes it.

    Attributes:
        folder: Where the database is, and where the recovery goes.
        spec: The study's job.
        plan: That of its trial.
        samples: How many recoveries are tried.
        steps: The most that one is trained.
    """

    folder: Path
    spec: JobSpec
    plan: Plan
    samples: int
    steps: int

    @classmethod
    def of(
        cls, folder: Path, spec: JobSpec, precision: Precision, *, samples: int, steps: int
    ) -> "Tuning":
        """Makes the study, with a uniform plan."""
        layers = [layer.name for layer in Evaluator.from_spec(spec).model.layers]
        tuning = cls(folder, spec, Plan.uniform(layers, precision), samples, steps)
        with open_store(tuning.url) as store:
            store.create_study(spec, {})
            lease = store.acquire(spec.study, "driver", 60)
            trial = Trial(spec.study, 0, Configuration(tuning.plan), Origin.BASELINE)
            store.start_trial(lease, trial)
            assert complete(store, lease, 0, {"error": 0.5, "nbytes": 200_000})
            store.release(lease, store.study(spec.study).state)
        return tuning

    @property
    def url(self) -> str:
        """The database."""
        return f"sqlite:///{self.folder / 'bitfront.db'}"

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder / "log.txt"

    @property
    def witness(self) -> Path:
        """What the workers say that they did."""
        return self.folder / "witness.jsonl"

    @property
    def out(self) -> Path:
        """Where the recovery goes."""
        return self.folder / "tuned"

    @contextmanager
    def started(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command as a person starts it; whatever is left of it in the end is killed."""
        command = [sys.executable, "-m", "service", "tune", self.spec.study, "--db", self.url]
        command += ["--samples", str(self.samples), "--steps", str(self.steps)]
        command += ["--out", str(self.out), "--keep-worse", *options]
        environment = {**os.environ, "BITFRONT_WITNESS": str(self.witness)}
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            try:
                yield process
            finally:
                kill(process)

    def run(self, *options: str) -> str:
        """What the command prints on its way to its end."""
        with self.started(*options) as process:
            assert process.wait(LONGEST_S) == 0, self.log.read_text()
        return self.log.read_text()

    def kill_when(self, ready: Callable[[Sequence[TuningSample]], bool]) -> dict[int, TuningSample]:
        """Kills the command as soon as its stored samples are ready; what is stored then."""
        with self.started() as driver:
            deadline_s = time.monotonic() + LONGEST_S
            while not ready([*self.stored().values()]):
                assert driver.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline_s, self.log.read_text()
                time.sleep(0.02)
            kill(driver)
        return self.stored()

    def stored(self) -> dict[int, TuningSample]:
        """The samples in the database."""
        with open_store(self.url, create=False) as store:
            experiments = store.tunings(self.spec.study)
            assert len(experiments) <= 1
            return store.samples(experiments[0].id) if experiments else {}


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all of its group, as a power cut would."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def trained_here(
    evaluator: Evaluator, configuration: Configuration, steps: Sequence[int], checkpoint: Path
) -> dict[int, float]:
    """The errors at some steps of a recovery that is trained in this process, without Ray."""
    errors = {}
    for stage in climb(evaluator, configuration, steps, checkpoint):
        errors[stage.step] = stage.value
        if stage.step == max(steps):
            break
    return errors
