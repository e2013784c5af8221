"""How well a configuration answers questions: exact match of greedy answers, loss, divergence."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from bitfront.errors import SpecError
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.spec import RecoverySpace
from bitfront.vlm import QuestionBatch
from objectives.data.answers import normalise, parse
from objectives.data.questions import QuestionSplit, QuestionTask
from objectives.data.split_name import SplitName
from objectives.data.task import first_of_each
from objectives.evaluation.scorer import (
    KEPT_RECOVERIES,
    PartialScore,
    Recoveries,
    Score,
    Scorer,
    ScoringContext,
)
from objectives.execution.feature_store import FeatureKey
from objectives.execution.parted import PartedRunner, rows_of
from objectives.execution.runner import StreamRunner
from objectives.execution.similarity import divergences_nats, loss_nats
from objectives.profiling.full_precision import FULL_PLAN
from objectives.recovery.answer_training import (
    AnswerRecovered,
    AnswerTraining,
    TaughtQuestions,
    by_question,
)


class AnswerScorer(Scorer):
    """Scores a generative model by its greedy answers.

    One run with the right answer given shows the loss, the divergence from full precision,
    and which questions are answered with exactly that answer: those where each of its tokens
    has the highest logit after the ones before it. Only the others are decoded.

    What the projector gives is kept by the part of the plan up to it, for recoveries: neither
    prompt nor adapter changes it.
    """

    def __init__(self, task: QuestionTask, context: ScoringContext) -> None:
        """Takes the questions with their model, and what every scorer works with."""
        self._spec = context.spec
        self._model = task.model
        self._task = task
        self._switch = context.switch
        self._stopwatch = context.stopwatch
        self._features = context.features
        self._runner = StreamRunner(task.model, context.switch, context.cache_nbytes)
        self._parted = PartedRunner(self._runner)
        limit = KEPT_RECOVERIES if context.cache_nbytes else 0
        self._recoveries = Recoveries(self.begin, self._load, context.stopwatch, limit)
        towers = {Tower.VISION, Tower.PROJECTOR}
        self._image_layers = frozenset(x.name for x in task.model.layers if x.tower in towers)

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """Whether the greedy answer to each question is among the right ones.

        `unparsed` is the share whose text ends without an answer; `loss_nats` is the mean
        cross-entropy of the right answers' tokens, `divergence` the mean divergence from full
        precision there. A question's own divergence is the sum over its tokens, divided by the mean
        length of an answer, so that the mean over the questions is that over the tokens.
        """
        full = self._full_logits(split)
        recovered = self._recoveries.get(configuration)
        questions = self._task.split(split)
        features = None if recovered is None else self._projected(configuration.plan, questions)
        with self._stopwatch.timed("answers"):
            logits = self._logits(configuration.plan, recovered, features, split)
        targets = self._targets(split)
        divergence = self._by_question(divergences_nats(full, logits), split)
        further = {"loss_nats": loss_nats(logits, targets)}
        if not bool(logits.isfinite().all()):
            return Score.of(torch.ones(len(divergence)), divergence, further)
        with self._stopwatch.timed("decoding"):
            answers = self._answers(recovered, features, logits, targets, split)
        found = [self._task.judge(split, place, answer) for place, answer in enumerate(answers)]
        further["unparsed"] = found.count(None) / len(found)
        wrong = torch.tensor([float(not one) for one in found])
        return Score.of(wrong, divergence, further)

    def course(self, plan: Plan, split: SplitName) -> Iterator[PartialScore]:
        """The divergences of more and more questions."""
        (stream,) = self._task.streams(split)
        questions = self._task.split(split)
        course = self._parted.course(stream, plan)
        while True:
            with self._stopwatch.timed("answers"):
                reached = next(course, None)
            if reached is None:
                return
            batches, logits = reached
            full = self._full_logits(split)[rows_of(batches, stream.rows).to(logits.device)]
            nats = self._by_question(divergences_nats(full, logits), split, batches)
            places = torch.cat([questions.batches[batch] for batch in batches])
            yield PartialScore(places, nats[places])

    def _by_question(
        self,
        tokens: Float[Tensor, " tokens"],
        split: SplitName,
        batches: Sequence[int] | None = None,
    ) -> Float[Tensor, " questions"]:
        """Sums over each question's tokens, divided by the mean number of tokens.

        Args:
            tokens: A figure of each token.
            split: Of the questions.
            batches: Those that the tokens are of; None for all. Other questions get 0.
        """
        questions = self._task.split(split)
        chosen = range(len(questions.batches)) if batches is None else batches
        parts = [
            part.repeat_interleave(len(questions.answers[int(part[0])]))
            for part in (questions.batches[batch] for batch in chosen)
        ]
        sums = torch.zeros(len(questions), dtype=tokens.dtype)
        sums.index_add_(0, torch.cat(parts), tokens.cpu())
        return sums * (len(questions) / sum(map(len, questions.answers)))

    def answer(self, configuration: Configuration, question: str, picture: Image | None) -> str:
        """The greedy text for any question, up to its end or the task's limit of tokens.

        Raises:
            InvalidSample: The model cannot read the question.
        """
        prompt = self._task.split(SplitName.TEST).prepare(question, picture)
        batch = QuestionBatch.of([prompt], torch.zeros(1, 1, dtype=torch.int64))
        recovered = self._recoveries.get(configuration)
        self._switch.to(configuration.plan)
        features = None
        if recovered is not None:
            with torch.no_grad():
                features = self._adapted(recovered, self._model.image_features(batch))
        (tokens,) = self._generate(batch, recovered, features)
        return self._model.decode(tokens)

    @torch.no_grad()
    def logits(
        self, configuration: Configuration, batch: QuestionBatch
    ) -> Float[Tensor, "n answer vocabulary"]:
        """The logits at the tokens of any questions' answers.

        A recovery is trained if it is not known.
        """
        recovered = self._recoveries.get(configuration)
        self._switch.to(configuration.plan)
        if recovered is None:
            return self._model.answer_logits(batch)
        features = self._adapted(recovered, self._model.image_features(batch))
        return self._model.answer_logits(batch, features=features, context=recovered.context)

    def begin(self, configuration: Configuration) -> AnswerTraining:
        """The training of the configuration's recovery, at its start, with the plan on.

        Raises:
            SpecError: It has settings that need classes or augmented views.
        """
        recovery = configuration.recovery
        assert recovery is not None
        refuse_class_settings(recovery)
        batches = self._taught(configuration.plan, recovery)
        self._switch.to(configuration.plan)
        search, quantizer = self._spec.search, self._spec.quantizer
        return AnswerTraining(self._model, recovery, quantizer, batches, search.seed)

    def keep(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> None:
        """Takes a recovery as known, as `Training.stored` gave it."""
        self._recoveries.keep(configuration, stored)

    def stored(self, configuration: Configuration) -> dict[str, Tensor]:
        """The tensors of a configuration's recovery, which is trained if it is not known."""
        return self._recoveries.stored(configuration)

    def _load(self, configuration: Configuration, stored: Mapping[str, Tensor]) -> AnswerRecovered:
        recovery = configuration.recovery
        assert recovery is not None
        return AnswerRecovered.load(stored, recovery, self._spec.quantizer, self._model)

    def _taught(self, plan: Plan, recovery: Recovery) -> list[TaughtQuestions]:
        """The tuning questions, with what full precision makes of them."""
        split = self._task.split(SplitName.TUNING)
        features = self._projected(plan, split)
        rows = [len(part) * len(split.answers[int(part[0])]) for part in split.batches]
        teacher = torch.split(self._full_logits(SplitName.TUNING), rows)
        firsts = [normalise(answers[0]) for answers in split.accepted]
        chosen = first_of_each(firsts, recovery.shots)
        taught = []
        for number, places in enumerate(split.batches):
            questions = split.read(number, with_pixels=False)
            own = by_question(teacher[number], len(places))
            rows_kept = torch.isin(places, chosen).nonzero().flatten()
            if len(rows_kept):
                taught.append(TaughtQuestions(questions, features[number], own).pick(rows_kept))
        return taught

    def _projected(self, plan: Plan, questions: QuestionSplit) -> list[Tensor | None]:
        """What the projector gives for each batch of a split; None where it has no images."""
        key = FeatureKey(f"{questions.key}/projected", plan.part(self._image_layers))
        kept = self._features.get(key)
        self._stopwatch.hit(f"{questions.key}_projected", kept is not None)
        if kept is None:
            self._switch.to(plan)
            with self._stopwatch.timed("vision"), torch.no_grad():
                found = [
                    self._model.image_features(questions.read(batch))
                    for batch in range(len(questions.batches))
                ]
            # A file has no place for nothing: questions without images have empty features.
            kept = tuple(torch.empty(0) if tensor is None else tensor for tensor in found)
            self._features.put(key, kept)
        return [tensor if len(tensor) else None for tensor in kept]

    def _logits(
        self,
        plan: Plan,
        recovered: AnswerRecovered | None,
        projected: Sequence[Tensor | None] | None,
        split: SplitName,
    ) -> Float[Tensor, "tokens vocabulary"]:
        """The logits at the tokens of the right answers; afterwards the plan is on the model."""
        if recovered is None or projected is None:
            (stream,) = self._task.streams(split)
            before = self._runner.cache.hits
            found = self._parted.run(stream, plan)
            self._stopwatch.hit(f"{stream.key}_blocks", self._runner.cache.hits - before)
            return found
        batches = self._recovered_logits(plan, recovered, projected, self._task.split(split))
        return torch.cat([logits.flatten(0, 1) for _, logits in batches])

    def _recovered_logits(
        self,
        plan: Plan,
        recovered: AnswerRecovered,
        projected: Sequence[Tensor | None],
        questions: QuestionSplit,
    ) -> Iterator[tuple[QuestionBatch, Float[Tensor, "n answer vocabulary"]]]:
        """Each batch of a split with its logits; afterwards the plan is on the model."""
        self._switch.to(plan)
        for number, features in enumerate(projected):
            batch = questions.read(number, with_pixels=False)
            with torch.no_grad():
                yield (
                    batch,
                    self._model.answer_logits(
                        batch,
                        features=self._adapted(recovered, features),
                        context=recovered.context,
                    ),
                )

    def _generate(
        self, batch: QuestionBatch, recovered: AnswerRecovered | None, features: Tensor | None
    ) -> list[list[int]]:
        limit = self._task.answer_tokens
        if recovered is None:
            return self._model.generate(batch, limit)
        return self._model.generate(batch, limit, features=features, context=recovered.context)

    def _full_logits(self, split: SplitName) -> Float[Tensor, "tokens vocabulary"]:
        key = FeatureKey(f"{split}/logits", FULL_PLAN)
        kept = self._features.get(key)
        if kept is None:
            (stream,) = self._task.streams(split)
            kept = (self._runner.run(stream, FULL_PLAN),)
            self._features.put(key, kept)
        return kept[0].to(self._model.device)

    def _targets(self, split: SplitName) -> Int[Tensor, " tokens"]:
        """The right token at each row of the logits."""
        questions = self._task.split(split)
        parts = [questions.answers[int(place)] for batch in questions.batches for place in batch]
        return torch.cat(parts).to(self._model.device)

    def _answers(
        self,
        recovered: AnswerRecovered | None,
        projected: Sequence[Tensor | None] | None,
        logits: Tensor,
        targets: Tensor,
        split: SplitName,
    ) -> list[str | None]:
        """The greedy answer to every question, parsed; None where there is none."""
        questions, task = self._task.split(split), self._task
        hits = (logits.argmax(dim=-1) == targets).cpu()
        answers: list[str | None] = [None] * len(questions)
        start = 0
        for number, places in enumerate(questions.batches):
            length = len(questions.answers[int(places[0])])
            rows = hits[start : start + len(places) * length].view(len(places), length)
            start += rows.numel()
            follows = rows.all(dim=1) & (length <= task.answer_tokens)
            for place in places[follows].tolist():
                answers[place] = self._parse(questions.answers[place].tolist())
            if not bool(follows.all()):
                features = None if projected is None else projected[number]
                written = self._write(recovered, features, split, number, ~follows)
                for place, tokens in zip(places[~follows].tolist(), written, strict=True):
                    answers[place] = self._parse(tokens)
        return answers

    def _write(
        self,
        recovered: AnswerRecovered | None,
        features: Tensor | None,
        split: SplitName,
        number: int,
        rows: Tensor,
    ) -> list[list[int]]:
        """Greedy answers to some questions of a batch."""
        batch = self._task.split(split).read(number, with_pixels=recovered is None)
        if recovered is not None and features is not None:
            own = by_question(features, len(batch))[rows.to(features.device)]
            features = self._adapted(recovered, own.flatten(0, 1))
        return self._generate(batch.pick(rows), recovered, features)

    def _adapted(self, recovered: AnswerRecovered, features: Tensor | None) -> Tensor | None:
        """The features after the adapter, on the device; those of a file are not there yet."""
        return None if features is None else recovered.adapt(features.to(self._model.device))

    def _parse(self, tokens: Sequence[int]) -> str | None:
        if not self._model.has_ended(tokens):
            return None
        return parse(self._model.decode(tokens), self._task.answer_pattern)


def refuse_class_settings(given: RecoverySpace | Recovery) -> None:
    """Refuses settings that mean nothing to a model that knows no classes.

    Raises:
        SpecError: There is one.
    """
    plain = Recovery()
    for name in ("class_position", "class_specific", "teacher", "views"):
        chosen = getattr(given, name)
        choices = chosen if isinstance(chosen, tuple) else (chosen,)
        if any(choice != getattr(plain, name) for choice in choices):
            raise SpecError(
                f"a recovery's {name} is for models that tell classes apart, but this one "
                "answers questions: leave it out"
            )
