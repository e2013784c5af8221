"""How well a configuration answers questions: exact match of greedy answers, loss, divergence."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.plan import Configuration
from bitfront.spec import Objective
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from objectives.answers import is_right, parse
from objectives.cache import TensorCache
from objectives.classification_judge import FEATURES_NBYTES
from objectives.questions import QuestionTask
from objectives.runner import StreamRunner
from objectives.similarity import divergence_nats, loss_nats
from objectives.stopwatch import Stopwatch
from objectives.task import SplitName
from objectives.teacher import FULL_PLAN


class AnswerJudge:
    """Judges a generative model by its greedy answers.

    One run with the right answer given shows the loss, the divergence from full precision,
    and which questions are answered with exactly that answer: those where each of its tokens
    has the highest logit behind the ones before it. Only the others are decoded.
    """

    def __init__(
        self,
        model: GenerativeModel,
        task: QuestionTask,
        switch: PlanSwitch,
        stopwatch: Stopwatch,
        cache_nbytes: int,
    ) -> None:
        self._model = model
        self._task = task
        self._switch = switch
        self._stopwatch = stopwatch
        self._runner = StreamRunner(model, switch, cache_nbytes)
        self._full = TensorCache(FEATURES_NBYTES if cache_nbytes else 0)

    def figures(self, configuration: Configuration, split: SplitName) -> dict[str, float]:
        """The figures of a configuration.

        `error` is the share of questions whose answer is none of the right ones, `unparsed`
        the share whose text ends without an answer; `loss_nats` is the mean cross-entropy of
        the right answers' tokens, `output_kl_nats` the mean divergence from full precision
        there.

        Raises:
            SpecError: The configuration has a recovery.
        """
        _refuse_recovery(configuration)
        (stream,) = self._task.streams(self._model, split)
        full = self._full_logits(split)
        before = self._runner.cache.hits
        with self._stopwatch.timed("answers"):
            logits = self._runner.run(stream, configuration.plan)
        self._stopwatch.hit(f"{stream.key}_blocks", self._runner.cache.hits - before)
        targets = self._targets(split)
        figures = {
            "loss_nats": loss_nats(logits, targets),
            "output_kl_nats": divergence_nats(full, logits),
        }
        if not bool(logits.isfinite().all()):
            return {Objective.ERROR.value: float("nan"), **figures}
        with self._stopwatch.timed("decoding"):
            answers = self._answers(logits, targets, split)
        accepted = self._task.split(split).accepted
        right = sum(map(is_right, answers, accepted))
        return {
            Objective.ERROR.value: 1 - right / len(answers),
            "unparsed": answers.count(None) / len(answers),
            **figures,
        }

    def text(self, configuration: Configuration, question: str, image: Image | None) -> str:
        """The greedy text for any question, up to its end or the task's limit of tokens.

        Raises:
            InvalidSample: The model cannot read the question.
            SpecError: The configuration has a recovery.
        """
        _refuse_recovery(configuration)
        prompt = self._task.split(SplitName.TEST).prepare(question, image)
        batch = QuestionBatch(
            prompt.tokens[None],
            torch.zeros(1, 1, dtype=torch.int64),
            None if prompt.pixels is None else prompt.pixels[None],
            None if prompt.size is None else torch.tensor([prompt.size]),
        )
        self._switch.to(configuration.plan)
        (tokens,) = self._model.generate(batch, self._task.answer_tokens)
        return self._model.decode(tokens)

    def _full_logits(self, split: SplitName) -> Float[Tensor, "tokens vocabulary"]:
        kept = self._full.get(split)
        if kept is not None:
            return kept[0]
        (stream,) = self._task.streams(self._model, split)
        logits = self._runner.run(stream, FULL_PLAN)
        self._full.put(split, [logits])
        return logits

    def _targets(self, split: SplitName) -> Int[Tensor, " tokens"]:
        """The right token at each row of the logits."""
        questions = self._task.split(split)
        parts = [questions.answers[int(place)] for batch in questions.batches for place in batch]
        return torch.cat(parts).to(self._model.device)

    def _answers(self, logits: Tensor, targets: Tensor, split: SplitName) -> list[str | None]:
        """The greedy answer to every question, parsed; None where there is none."""
        questions, task = self._task.split(split), self._task
        hits = (logits.argmax(dim=-1) == targets).cpu()
        answers: list[str | None] = [None] * len(questions)
        start = 0
        for batch, places in enumerate(questions.batches):
            length = len(questions.answers[int(places[0])])
            rows = hits[start : start + len(places) * length].view(len(places), length)
            start += rows.numel()
            follows = rows.all(dim=1) & (length <= task.answer_tokens)
            for place in places[follows].tolist():
                answers[place] = self._parse(questions.answers[place].tolist())
            if not bool(follows.all()):
                others = questions.read(batch).pick(~follows)
                written = self._model.generate(others, task.answer_tokens)
                for place, tokens in zip(places[~follows].tolist(), written, strict=True):
                    answers[place] = self._parse(tokens)
        return answers

    def _parse(self, tokens: Sequence[int]) -> str | None:
        if not self._model.has_ended(tokens):
            return None
        return parse(self._model.decode(tokens), self._task.answer_pattern)


def _refuse_recovery(configuration: Configuration) -> None:
    if configuration.recovery is not None:
        raise SpecError(
            "a generative model has no recovery yet: leave space.recovery out of the job"
        )
