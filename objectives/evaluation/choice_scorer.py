"""How well a configuration chooses among options: by their likelihood, or by what it writes."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitfront.plan import Configuration, Plan
from bitfront.tasks import TaskMeasure
from objectives.data.choices import ChoiceTask
from objectives.data.split_name import SplitName
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.scorer import PartialScore, Score, ScoringContext
from objectives.execution.feature_store import FeatureKey
from objectives.execution.similarity import divergences_nats, is_highest, loss_nats
from objectives.execution.streams import token_log_p
from objectives.profiling.full_precision import FULL_PLAN
from objectives.recovery.answer_training import AnswerRecovered

_IMPOSSIBLE = -1e4  # of a place without an option: its probability is 0, and KL stays finite


class ChoiceScorer(AnswerScorer):
    """Scores a generative model by the options that it chooses."""

    def __init__(self, task: ChoiceTask, context: ScoringContext) -> None:
        """Takes the questions with their model, and what every scorer works with."""
        super().__init__(task, context)
        self._choices = task

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """Whether the right option is chosen.

        By likelihood it is the one with the highest probability of being written word for word,
        its end included; `divergence` is the mean `KL(p || q)` of the choice, `p` and `q` being the
        options' probabilities over their sum in full precision and under the configuration, and
        `loss_nats` the cross-entropy of the right option. By letter it is what the greedy text
        names; `unparsed` is the share that names none, and those count as wrong. `divergence` and
        `loss_nats` are then of the right answer's tokens, as for other answers.
        """
        if self._choices.measure is not TaskMeasure.LIKELIHOOD:
            return super().score(configuration, split)
        full = self._full_options(split)
        recovered = self._recoveries.get(configuration)
        with self._stopwatch.timed("answers"):
            found = self.by_option(self._token_log_p(configuration.plan, recovered, split), split)
        further = {"loss_nats": loss_nats(found, self._rights(split))}
        return Score.of(self.wrong(found, split), divergences_nats(full, found), further)

    def course(self, plan: Plan, split: SplitName) -> Iterator[PartialScore]:
        """By likelihood nothing: the options of a question may be in several batches."""
        if self._choices.measure is not TaskMeasure.LIKELIHOOD:
            yield from super().course(plan, split)

    def wrong(
        self, likelihoods: Float[Tensor, "questions options"], split: SplitName
    ) -> Float[Tensor, " questions"]:
        """1 for each question whose likeliest option is not the right one."""
        return (~is_highest(likelihoods, self._rights(split))).float().cpu()

    def _rights(self, split: SplitName) -> Int[Tensor, " questions"]:
        return torch.tensor([right for _, right in self._choices.choices[split]])

    def _full_options(self, split: SplitName) -> Float[Tensor, "questions options"]:
        questions = self._choices.options[split]
        key = FeatureKey(f"{questions.key}/likelihoods", FULL_PLAN)
        kept = self._features.get(key)
        if kept is None:
            kept = (self._token_log_p(FULL_PLAN, None, split),)
            self._features.put(key, kept)
        return self.by_option(kept[0].to(self._model.device), split)

    def _token_log_p(
        self, plan: Plan, recovered: AnswerRecovered | None, split: SplitName
    ) -> Float[Tensor, "tokens 1"]:
        """The log-probability of every token of every option, batch by batch."""
        if recovered is None:
            return self._runner.run(self._choices.option_stream(split), plan)
        questions = self._choices.options[split]
        projected = self._projected(plan, questions)
        batches = self._recovered_logits(plan, recovered, projected, questions)
        return torch.cat([token_log_p(logits, batch.answers) for batch, logits in batches])

    def by_option(
        self, tokens: Float[Tensor, "tokens 1"], split: SplitName
    ) -> Float[Tensor, "questions options"]:
        """The log-probability of each question's options, the sum over their tokens."""
        questions = self._choices.options[split]
        places = torch.cat(
            [
                part.repeat_interleave(length)
                for part, (_, length) in zip(questions.batches, questions.shapes, strict=True)
            ]
        )
        sums = torch.zeros(len(questions), dtype=torch.float64)
        sums.index_add_(0, places, tokens[:, 0].double().cpu())
        counts = [len(options) for options, _ in self._choices.choices[split]]
        rows = torch.nn.utils.rnn.pad_sequence(
            list(torch.split(sums, counts)), batch_first=True, padding_value=_IMPOSSIBLE
        )
        return rows.to(tokens.device)
