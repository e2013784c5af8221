"""What the towers of a dual encoder give, kept by each tower's own part of the plan."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from bitfront.layers import Tower
from bitfront.plan import Plan
from bitfront.vlm import DualEncoder
from objectives.evaluation.scorer import ScoringContext
from objectives.execution.feature_store import FeatureKey
from objectives.execution.parted import PartedRunner
from objectives.execution.runner import StreamRunner
from objectives.execution.streams import Stream
from objectives.profiling.full_precision import FULL_PLAN


class TowerFeatures:
    """Runs streams under plans, and keeps what is known: activations between blocks, features."""

    def __init__(self, model: DualEncoder, context: ScoringContext) -> None:
        self._model = model
        self._stopwatch = context.stopwatch
        self._features = context.features
        self._runner = StreamRunner(model, context.switch, context.cache_nbytes)
        self._parted = PartedRunner(self._runner)
        self._layers = {
            frozenset({tower}): frozenset(x.name for x in model.layers if x.tower is tower)
            for tower in Tower
        }

    def full(self, given: Stream) -> Float[Tensor, "n d"]:
        """The features in full precision, computed once; no stopwatch runs."""
        key = FeatureKey(given.key, FULL_PLAN)
        kept = self._features.get(key)
        if kept is None:
            kept = (self._runner.run(given, FULL_PLAN, keep=False),)
            self._features.put(key, kept)
        return kept[0].to(self._model.device)

    def under(self, given: Stream, plan: Plan, stage: str) -> Float[Tensor, "n d"]:
        """The features under a plan; the time counts as that of a stage."""
        with self._stopwatch.timed(stage):
            key = self._key(given, plan)
            kept = self._features.get(key)
            self._stopwatch.hit(f"{given.key}_features", kept is not None)
            if kept is not None:
                return kept[0].to(self._model.device)
            before = self._runner.cache.hits
            features = self._parted.run(given, plan, keep=_is_shared(plan))
            self._stopwatch.hit(f"{given.key}_blocks", self._runner.cache.hits - before)
            self._features.put(key, [features])
            return features

    def course(
        self, given: Stream, plan: Plan, stage: str
    ) -> Iterator[tuple[tuple[int, ...], Float[Tensor, "rows d"]]]:
        """As `PartedRunner.course`; nothing where the features are known."""
        if self._features.get(self._key(given, plan)) is not None:
            return
        course = self._parted.course(given, plan, keep=_is_shared(plan))
        while True:
            with self._stopwatch.timed(stage):
                reached = next(course, None)
            if reached is None:
                return
            yield reached

    def _key(self, given: Stream, plan: Plan) -> FeatureKey:
        return FeatureKey(given.key, plan.part(self._layers[given.towers]))


def _is_shared(plan: Plan) -> bool:
    """Whether another plan may share its beginning: hardly that of full precision."""
    return len(plan) > 0
