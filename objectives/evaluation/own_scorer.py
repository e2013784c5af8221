"""How well a configuration does a person's own task, by the task's own errors."""

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.plan import Configuration, Plan
from bitfront.tasks import own_task
from objectives.data.own import InstalledPackageTask
from objectives.data.split_name import SplitName
from objectives.evaluation.scorer import PlanScorer, Score, ScoringContext
from objectives.execution.feature_store import FeatureKey
from objectives.execution.runner import StreamRunner
from objectives.execution.similarity import divergences_nats
from objectives.profiling.full_precision import FULL_PLAN


class OwnScorer(PlanScorer):
    """Scores a model by what an installed task makes of its logits."""

    def __init__(self, task: InstalledPackageTask, context: ScoringContext) -> None:
        super().__init__(own_task(task.package.name))
        self._task = task
        self._stopwatch = context.stopwatch
        self._features = context.features
        self._runner = StreamRunner(task.model, context.switch, context.cache_nbytes)

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """The task's errors, and the divergence of its logits from those of full precision.

        A sample's divergence is the mean over its rows of `KL(p || q)`, `p` and `q` being the
        softmax in full precision and under the configuration.
        """
        plan, full = self._plan(configuration), self._full(split)
        with self._stopwatch.timed("predictions"):
            logits = self._run(plan, split)
        count = sum(self._task.stream(split).sizes)
        divergence = divergences_nats(full, logits).reshape(count, -1).mean(dim=-1)
        if not bool(logits.isfinite().all()):
            return Score.of(torch.ones(count), torch.full((count,), torch.nan), {})
        return Score.of(self._task.errors(split, logits), divergence, {})

    def _full(self, split: SplitName) -> Float[Tensor, "rows classes"]:
        key = FeatureKey(f"{split}/own", FULL_PLAN)
        kept = self._features.get(key)
        if kept is None:
            kept = (self._run(FULL_PLAN, split),)
            self._features.put(key, kept)
        return kept[0].to(self._task.model.device)

    def _run(self, plan: Plan, split: SplitName) -> Float[Tensor, "rows classes"]:
        return self._runner.run(self._task.stream(split), plan, keep=len(plan) > 0)
