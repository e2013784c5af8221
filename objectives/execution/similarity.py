"""Where the towers meet: class features, logits, and the figures that are read off them."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional


def class_features(
    captions: Float[Tensor, "captions d"], templates: int
) -> Float[Tensor, "classes d"]:
    """The classes' features, of length 1: the mean over the templates as CLIP does it.

    Args:
        captions: The captions' features, template by template, of any length.
        templates: How many templates there are.
    """
    unit = functional.normalize(captions.float(), dim=-1)
    mean = unit.reshape(templates, -1, unit.shape[-1]).mean(dim=0)
    return functional.normalize(mean, dim=-1)


def logits(
    images: Float[Tensor, "n d"], classes: Float[Tensor, "classes d"], scale: float
) -> Float[Tensor, "n classes"]:
    """`scale` times the cosine of every image with every class, in float32."""
    return scale * functional.normalize(images.float(), dim=-1) @ classes.float().T


def is_highest(scores: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether each sample's label has the highest score."""
    return scores.argmax(dim=-1) == labels.to(scores.device)


def loss_nats(scores: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The mean cross-entropy of the labels, in nats."""
    return float(functional.cross_entropy(scores.double(), labels.to(scores.device)))


def divergence_nats(
    reference: Float[Tensor, "n classes"], scores: Float[Tensor, "n classes"]
) -> float:
    """The mean of `KL(softmax(reference) || softmax(scores))`, in nats; at least 0.

    In float64; NaN stays NaN.
    """
    divergence = float(divergences_nats(reference, scores).mean())
    return divergence if divergence != divergence else max(0.0, divergence)


def divergences_nats(
    reference: Float[Tensor, "n classes"], scores: Float[Tensor, "n classes"]
) -> Float64[Tensor, " n"]:
    """`KL(softmax(reference) || softmax(scores))` of each row, in nats; below 0 by round-off only.

    In float64; NaN stays NaN.
    """
    wanted = torch.log_softmax(reference.double(), dim=-1)
    given = torch.log_softmax(scores.double(), dim=-1)
    return (wanted.exp() * (wanted - given)).sum(dim=-1)
