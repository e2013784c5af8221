"""How well a configuration finds images by their captions, and captions by their images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from bitfront.errors import SpecError
from bitfront.plan import Configuration
from bitfront.tasks import RETRIEVAL, TaskMeasure
from objectives.data.retrieval import RetrievalTask
from objectives.data.split_name import SplitName
from objectives.evaluation.scorer import PlanScorer, Score, ScoringContext
from objectives.evaluation.tower_features import TowerFeatures
from objectives.execution.similarity import divergences_nats

DEPTHS: Final = {
    TaskMeasure.RECALL_AT_1: 1,
    TaskMeasure.RECALL_AT_5: 5,
    TaskMeasure.RECALL_AT_10: 10,
}
"""How many candidates are looked at."""

_ROWS = 1024  # queries that are compared with all candidates at a time


class RetrievalScorer(PlanScorer):
    """Scores a dual encoder as CLIP_benchmark's `zeroshot_retrieval` does.

    A query is right at K if one of the K candidates with the highest cosine belongs to it: of a
    caption, the image that it was written for, and of an image, any of its own captions. The
    candidates are those of the split.
    """

    def __init__(self, task: RetrievalTask, context: ScoringContext) -> None:
        super().__init__(RETRIEVAL)
        self._task = task
        self._towers = TowerFeatures(task.model, context)

    def score(self, configuration: Configuration, split: SplitName) -> Score:
        """The recall in both directions; `error` is 1 less the mean of the two at the job's depth.

        A sample is an image with its captions: half of its share in the error is whether it finds
        none of them, the other half how many of them do not find it, so that the mean is the error
        however many captions each has. `divergence` is the mean `KL(p || q)` of the
        two directions, `p` and `q` being the softmax over the candidates in full precision and
        under the configuration; `loss_nats` is the mean cross-entropy of the two.
        """
        task = self._task
        images, captions = task.images(split), task.captions(split)
        full = _unit(self._towers.full(images)), _unit(self._towers.full(captions))
        found = self.features(configuration, split)
        owners = task.split(split).owners
        wrong = {depth: misses(*found, owners, depth) for depth in DEPTHS.values()}
        errors = shares(*wrong[DEPTHS[task.measure]], owners)
        divergence = shares(*divergences(full, found, task.model.logit_scale), owners)
        return Score.of(errors, divergence, {**_recalls(wrong), **self._loss(found, owners)})

    def features(
        self, configuration: Configuration, split: SplitName
    ) -> tuple[Float[Tensor, "images d"], Float[Tensor, "captions d"]]:
        """The features of a split's images and captions under a configuration, of length 1."""
        task, plan = self._task, self._plan(configuration)
        return (
            _unit(self._towers.under(task.images(split), plan, "vision")),
            _unit(self._towers.under(task.captions(split), plan, "text")),
        )

    def errors(
        self,
        images: Float[Tensor, "images d"],
        captions: Float[Tensor, "captions d"],
        split: SplitName,
    ) -> Float64[Tensor, " images"]:
        """Each image's share, with its captions, in the error of a split, by its features."""
        owners = self._task.split(split).owners
        return shares(*misses(images, captions, owners, DEPTHS[self._task.measure]), owners)

    def _loss(
        self, found: tuple[Tensor, Tensor], owners: Int[Tensor, " captions"]
    ) -> dict[str, float]:
        """The cross-entropy of a caption's image, and of any caption of an image."""
        images, texts = found
        scale = self._task.model.logit_scale
        own = owners.to(images.device)
        of_captions, of_images = 0.0, 0.0
        for start, stop, rows in _parts(texts):
            scores = (scale * rows @ images.T).double()
            of_captions += float(functional.cross_entropy(scores, own[start:stop], reduction="sum"))
        for start, stop, rows in _parts(images):
            log_p = (scale * rows @ texts.T).double().log_softmax(dim=-1)
            others = own != torch.arange(start, stop, device=own.device)[:, None]
            of_images -= float(log_p.masked_fill(others, -torch.inf).logsumexp(dim=-1).sum())
        return {"loss_nats": (of_captions / len(texts) + of_images / len(images)) / 2}

    def classify(
        self, configuration: Configuration, pictures: Sequence[Image], top: int
    ) -> list[list[tuple[str, float]]]:
        """Refuses pictures.

        Raises:
            SpecError: Always.
        """
        del configuration, pictures, top
        raise SpecError(
            "the study is of retrieval, and has no classes: put its configuration onto a loaded "
            "model with 'apply', as docs/python.md shows"
        )


def misses(
    images: Float[Tensor, "images d"],
    texts: Float[Tensor, "captions d"],
    owners: Int[Tensor, " captions"],
    depth: int,
) -> tuple[Bool[Tensor, " images"], Bool[Tensor, " captions"]]:
    """Whether each image finds none of its captions, and each caption not its image.

    Args:
        images: Features of length 1.
        texts: Features of length 1.
        owners: The image of every caption.
        depth: How many candidates are looked at; all of them where there are fewer.
    """
    own = owners.to(images.device)
    found_texts = [
        (own[places] == torch.arange(start, stop, device=own.device)[:, None]).any(dim=-1)
        for start, stop, places in _nearest(images, texts, depth)
    ]
    found_images = [
        (places == own[start:stop, None]).any(dim=-1)
        for start, stop, places in _nearest(texts, images, depth)
    ]
    return ~torch.cat(found_texts), ~torch.cat(found_images)


def divergences(
    full: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], scale: float
) -> tuple[Float64[Tensor, " images"], Float64[Tensor, " captions"]]:
    """`KL` of each query's softmax over the candidates, images first, in nats."""

    def of(queries: int, candidates: int) -> Tensor:
        return torch.cat(
            [
                divergences_nats(
                    scale * full[queries][start:stop] @ full[candidates].T,
                    scale * rows @ found[candidates].T,
                )
                for start, stop, rows in _parts(found[queries])
            ]
        )

    return of(0, 1), of(1, 0)


def shares(
    of_images: Tensor, of_captions: Tensor, owners: Int[Tensor, " captions"]
) -> Float64[Tensor, " images"]:
    """What each image with its captions adds to the mean of the two directions' means."""
    images, captions = of_images.double().cpu(), of_captions.double().cpu()
    sums = torch.zeros(len(images), dtype=torch.float64).index_add_(0, owners.cpu(), captions)
    return (images + sums * (len(images) / len(captions))) / 2


def _recalls(wrong: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The shares that are found, by the names of what is searched, as CLIP_benchmark has them."""
    found = {}
    for depth, (images, captions) in wrong.items():
        found[f"image_retrieval_recall_at_{depth}"] = float((~captions).float().mean())
        found[f"text_retrieval_recall_at_{depth}"] = float((~images).float().mean())
    return found


def _nearest(
    queries: Tensor, candidates: Tensor, depth: int
) -> Iterator[tuple[int, int, Int[Tensor, "rows depth"]]]:
    """The places of the nearest candidates of some queries at a time."""
    for start, stop, rows in _parts(queries):
        scores = rows @ candidates.T
        yield start, stop, scores.topk(min(depth, len(candidates)), dim=1).indices


def _parts(rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Some rows at a time, with their places."""
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield start, start + len(part), part


def _unit(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return functional.normalize(features.float(), dim=-1)
