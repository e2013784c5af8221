"""Verifying an artefact: it runs in a process of its own, and is held against what was measured."""

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from bitfront.artefact.architectures import RUNTIME
from bitfront.artefact.runtime.serve import receive, send
from bitfront.errors import FailedBuild
from bitfront.objective import Objective
from bitfront.plan import Configuration
from bitfront.samples import effective_count
from bitfront.tasks import TaskMeasure
from bitfront.vlm import QuestionBatch
from objectives.data.answers import parse
from objectives.data.choices import ChoiceTask
from objectives.data.classification import ClassificationTask
from objectives.data.questions import QuestionTask
from objectives.data.split_name import SplitName
from objectives.data.written import WrittenTask
from objectives.evaluation.agreement_scorers import WrittenScorer
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.choice_scorer import ChoiceScorer
from objectives.evaluation.classification_scorer import ClassificationScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.execution.streams import token_log_p

_OWN = ("bitfront", "objectives", "search", "service", "storage", "workers")
BLOCKED = {
    "packed": _OWN,
    "onnx": (*_OWN, "torch", "onnx"),
    "openvino": (*_OWN, "torch", "onnx", "onnxruntime"),
    "compressed-tensors": (*_OWN, "onnx", "onnxruntime", "openvino"),
    "gguf": (*_OWN, "torch", "transformers", "onnx", "onnxruntime", "openvino"),
}
"""What an artefact's process cannot import, by the kind of artefact."""

# Outputs may differ by this share of their own spread: what was measured in float32 but is stored
# in 16 bits (norms, biases) moves them, and where inputs are quantized single codes flip.
DIFFERENCE_SHARE = 0.02
_SPREADS = 1.96  # standard errors of a 95 % interval
_REPEATS = 7
_LEAST_COSINE = 0.98
_CAPTIONS = 64
_TIMED_BATCHES = (1, 32)
_TIMED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Verification:
    """What an artefact was seen to do.

    Attributes:
        largest_difference: Of the logits on the calibration samples, against the configuration.
        mean_difference: Of the same.
        spread: The standard deviation of those logits.
        same_predictions: The share of them whose largest is at the same place.
        measured_error: What the trial recorded as its error on the selection split.
        error: The artefact's error there.
        error_low: Lower end of the error's 95 % interval (Wilson).
        error_high: Its upper end.
        samples: How many samples the error is of.
        tensors_nbytes: Bytes of the packed tensors.
        files_nbytes: Bytes of all files.
        resident_nbytes: Memory that loading the model took.
        latency_s: Seconds of a forward by batch size, the median of seven.
        text_cosine: The mean cosine of captions' features with those of the configuration's text
            tower; None for a model without one.
        token_s: Seconds of one more token at batch size 1, the median of seven; None for a model
            that writes none. `latency_s` is then that of reading a prompt.
    """

    largest_difference: float
    mean_difference: float
    spread: float
    same_predictions: float
    measured_error: float
    error: float
    error_low: float
    error_high: float
    samples: int
    tensors_nbytes: int
    files_nbytes: int
    resident_nbytes: int
    latency_s: dict[str, float]
    text_cosine: float | None = None
    token_s: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON content."""
        return asdict(self)

    def check(self) -> None:
        """Refuses an artefact that does not compute what was measured.

        Raises:
            FailedBuild: Its outputs or its error differ too much.
        """
        allowed = DIFFERENCE_SHARE * self.spread
        if not self.mean_difference <= allowed:
            raise FailedBuild(
                f"the artefact's outputs differ from the measured by {self.mean_difference:.3g} "
                f"in the mean, more than {allowed:.3g}: it is not what was measured"
            )
        if self.text_cosine is not None and not self.text_cosine >= _LEAST_COSINE:
            raise FailedBuild(
                f"the artefact's text features have a mean cosine of {self.text_cosine:.4f} with "
                f"the measured ones, less than {_LEAST_COSINE}: it is not what was measured"
            )
        if not self.error_low <= self.measured_error <= self.error_high:
            raise FailedBuild(
                f"the artefact's error is {self.error:.4f} ({self.error_low:.4f} to "
                f"{self.error_high:.4f}), but {self.measured_error:.4f} was measured"
            )


def verify(
    evaluator: Evaluator,
    configuration: Configuration,
    folder: Path,
    measured_error: float,
    kind: str,
) -> Verification:
    """Runs the artefact in a folder beside the configuration that it is of.

    Args:
        evaluator: With the model and data that the configuration was measured on.
        configuration: What the artefact is of.
        folder: The artefact.
        measured_error: What its trial recorded, on the selection split.
        kind: What it is built as, such as `packed`.

    Raises:
        FailedBuild: It cannot be loaded or run.
    """
    verifier = _verifier(evaluator)
    differences, predictions, spreads = [], [], []
    with Runner(folder, kind) as runner:
        for given, wanted in verifier.calibration(configuration):
            found = runner.run(given)
            differences.append((found - wanted).abs().flatten())
            predictions.append((found.argmax(-1) == wanted.argmax(-1)).flatten())
            spreads.append(wanted.flatten())
        text_cosine = verifier.text_cosine(runner)
        errors = verifier.errors(runner).double().numpy()
        latency_s = {}
        for size in _timed_batches(evaluator):
            latency_s[str(size)] = runner.time(verifier.sample(size))
        token_s = verifier.token_s(runner)
        resident = runner.resident_nbytes
    error = float(errors.mean())
    low, high = wilson(error, effective_count(errors))
    files = [path.stat().st_size for path in folder.iterdir()]
    return Verification(
        largest_difference=float(torch.cat(differences).max()),
        mean_difference=float(torch.cat(differences).double().mean()),
        spread=float(torch.cat(spreads).double().std()),
        same_predictions=float(torch.cat(predictions).double().mean()),
        measured_error=measured_error,
        error=error,
        error_low=low,
        error_high=high,
        samples=len(errors),
        tensors_nbytes=sum(evaluator.nbytes(configuration).values()),
        files_nbytes=sum(files),
        resident_nbytes=resident,
        latency_s=latency_s,
        text_cosine=text_cosine,
        token_s=token_s,
    )


def _timed_batches(evaluator: Evaluator) -> list[int]:
    """Batch sizes that everybody asks for, and that of the job's own latencies."""
    stages = [meter.stage for meter in evaluator.latency_meters]
    own = {stage.batch_size for stage in stages if stage.figure is Objective.LATENCY_S}
    return sorted({*_TIMED_BATCHES, *own})


def wilson(share: float, samples: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    z = _SPREADS
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    root = math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    reach = z * root / (1 + z * z / samples)
    return max(0.0, middle - reach), min(1.0, middle + reach)


class Runner:
    """An artefact in a process of its own, where nothing of bitfront can be imported.

    Attributes:
        resident_nbytes: Memory that loading it took.
    """

    resident_nbytes: int

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind

    def __enter__(self) -> Self:
        """Starts it.

        Raises:
            FailedBuild: It cannot be loaded.
        """
        script, blocked = str(RUNTIME / "serve.py"), BLOCKED[self._kind]
        command = [sys.executable, "-IB", script, self._kind, str(self._folder), *blocked]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.resident_nbytes = int(self._read()["resident_nbytes"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def run(self, given: dict[str, Tensor]) -> Tensor:
        """The outputs for some samples.

        Raises:
            FailedBuild: It cannot run them.
        """
        self._write(given)
        return self._read()["outputs"]

    def time(self, given: dict[str, Tensor]) -> float:
        """The median seconds of a forward."""
        self._write({**given, "repeats": torch.tensor(_REPEATS)})
        return float(self._read()["seconds"].median())

    def _write(self, given: dict[str, Tensor]) -> None:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in given.items()}
            send(_open(self._process.stdin), save(contiguous))
        except BrokenPipeError:
            self._fail()

    def _read(self) -> dict[str, Tensor]:
        found = receive(_open(self._process.stdout))
        if found is None:
            self._fail()
        assert found is not None
        return load(found)

    def _fail(self) -> None:
        _, said = self._process.communicate()
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        reason = last or f"it ended with {self._process.returncode}"
        raise FailedBuild(
            f"{self._kind} refuses the model, in a process of its own: {reason}; --to packed takes "
            "every plan"
        )


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _verifier(evaluator: Evaluator) -> "_Classes | _Answers":
    task, scorer = evaluator.task, evaluator.scorer
    if isinstance(task, ClassificationTask):
        assert isinstance(scorer, ClassificationScorer)
        return _Classes(task, scorer)
    if isinstance(scorer, WrittenScorer):
        assert isinstance(task, WrittenTask)
        return _Written(task, scorer)
    if isinstance(task, ChoiceTask):
        assert isinstance(scorer, ChoiceScorer)
        return _Choices(task, scorer)
    assert isinstance(task, QuestionTask)
    assert isinstance(scorer, AnswerScorer)
    return _Answers(task, scorer)


class _Classes:
    """Samples of a classification task for an artefact."""

    def __init__(self, task: ClassificationTask, scorer: ClassificationScorer) -> None:
        self._task = task
        self._scorer = scorer

    def calibration(
        self, configuration: Configuration
    ) -> Iterator[tuple[dict[str, Tensor], Float[Tensor, "n classes"]]]:
        """Batches of samples with the logits that the configuration has for them."""
        for pixels in self._batches(SplitName.CALIBRATION):
            yield {"pixels": pixels}, self._scorer.logits(configuration, pixels).cpu()

    def errors(self, runner: Runner) -> Float[Tensor, " n"]:
        """Each image's share in the error of the selection split."""
        found = [runner.run({"pixels": pixels}) for pixels in self._batches(SplitName.SELECTION)]
        logits = torch.cat(found).to(self._task.model.device)
        return self._scorer.errors(logits, SplitName.SELECTION).cpu()

    def text_cosine(self, runner: Runner) -> float:
        """How near captions' features are to those of the text tower that has the last plan on."""
        captions = self._task.captions[:_CAPTIONS].cpu()
        with torch.no_grad():
            wanted = self._task.model.encode_texts(captions).float().cpu()
        found = runner.run({"captions": captions})
        return float(torch.nn.functional.cosine_similarity(found, wanted, dim=-1).mean())

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""
        pixels = next(self._batches(SplitName.CALIBRATION))
        return {"pixels": _repeated(pixels, size)}

    def token_s(self, runner: Runner) -> None:
        """Always None, because such a model writes nothing."""
        del runner

    def _batches(self, name: SplitName) -> Iterator[Tensor]:
        split, size = self._task.split(name), self._task.batch_size
        for start in range(0, len(split), size):
            yield split.read(start, min(start + size, len(split))).cpu()


class _Answers:
    """Samples of a question task for an artefact."""

    def __init__(self, task: QuestionTask, scorer: AnswerScorer) -> None:
        self._task = task
        self._scorer = scorer

    def calibration(
        self, configuration: Configuration
    ) -> Iterator[tuple[dict[str, Tensor], Float[Tensor, "n answer vocabulary"]]]:
        """Batches of samples with the logits that the configuration has for them."""
        split = self._task.split(SplitName.CALIBRATION)
        for number in range(len(split.batches)):
            batch = split.read(number)
            yield _taught(batch), self._scorer.logits(configuration, batch).float().cpu()

    def errors(self, runner: Runner) -> Float[Tensor, " n"]:
        """Each question's share in the error of the selection split: 1 where it is wrong."""
        split, task = self._task.split(SplitName.SELECTION), self._task
        wrong = torch.zeros(len(split))
        for number, places in enumerate(split.batches):
            given = _given(split.read(number)) | {"limit": torch.tensor(task.answer_tokens)}
            rows: Sequence[Sequence[int]] = runner.run(given).tolist()
            for place, row in zip(places.tolist(), rows, strict=True):
                tokens = [token for token in row if token >= 0]
                answer = None
                if task.model.has_ended(tokens):
                    answer = parse(task.model.decode(tokens), task.answer_pattern)
                wrong[place] = not task.judge(SplitName.SELECTION, place, answer)
        return wrong

    def text_cosine(self, runner: Runner) -> None:
        """Always None, because such a model has no text tower of its own."""
        del runner

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch of a size."""
        given = _given(self._task.split(SplitName.CALIBRATION).read(0))
        tensors = {name: _repeated(tensor, size) for name, tensor in given.items()}
        return tensors | {"kept": torch.tensor(1)}

    def token_s(self, runner: Runner) -> float:
        """Seconds of one more token, from answers of two lengths."""
        given = self.sample(1) | {"endless": torch.tensor(1)}
        first, all_of_them = (
            runner.time(given | {"limit": torch.tensor(1 + count)}) for count in (0, _TIMED_TOKENS)
        )
        return max(0.0, all_of_them - first) / _TIMED_TOKENS


class _Written(_Answers):
    """What the full model wrote, for an artefact."""

    def __init__(self, task: WrittenTask, scorer: WrittenScorer) -> None:
        super().__init__(task, scorer)
        self._written = scorer

    def errors(self, runner: Runner) -> Float[Tensor, " n"]:
        """Each picture's share in the error of the selection split."""
        split = self._task.split(SplitName.SELECTION)
        batches = [split.read(number) for number in range(len(split.batches))]
        logits = torch.cat([runner.run(_taught(batch)).flatten(0, 1) for batch in batches])
        return self._written.errors(logits.to(self._task.model.device), split.name).cpu()


class _Choices(_Answers):
    """Samples of multiple choice for an artefact."""

    def __init__(self, task: ChoiceTask, scorer: ChoiceScorer) -> None:
        super().__init__(task, scorer)
        self._choices = task
        self._options = scorer

    def errors(self, runner: Runner) -> Float[Tensor, " n"]:
        """Each question's share in the error of the selection split: 1 where it is wrong."""
        if self._choices.measure is TaskMeasure.LETTER:
            return super().errors(runner)
        split = self._choices.options[SplitName.SELECTION]
        batches = [split.read(number) for number in range(len(split.batches))]
        log_p = [token_log_p(runner.run(_taught(batch)), batch.answers) for batch in batches]
        return self._options.wrong(
            self._options.by_option(torch.cat(log_p), split.name), split.name
        )


def _taught(batch: QuestionBatch) -> dict[str, Tensor]:
    tokens = torch.cat([batch.prompts, batch.answers[:, :-1]], dim=1)
    return _given(batch) | {"tokens": tokens, "kept": torch.tensor(batch.answers.shape[1])}


def _given(batch: QuestionBatch) -> dict[str, Tensor]:
    optional = {"pixels": batch.pixels, "sizes": batch.sizes}
    known = {name: tensor for name, tensor in optional.items() if tensor is not None}
    return {"tokens": batch.prompts, **known}


def _repeated(tensor: Tensor, size: int) -> Tensor:
    return tensor[torch.arange(size) % len(tensor)]
