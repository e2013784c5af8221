"""The training loss of P4Q: the labels' cross-entropy, and the teacher's beside it."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def teacher_cross_entropy(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"]
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the student under the teacher's probabilities, in nats.

    `-sum_c softmax(teacher)_c * log softmax(student)_c`: the teacher's probabilities are the
    target. (The published code has the arguments the other way round and probabilities for
    logits, which leaves a thirtieth of the gradient.)

    Args:
        student: `(n, classes)` logits; gradients flow to them.
        teacher: `(n, classes)` logits; constants.
    """
    target = functional.softmax(teacher.detach(), dim=-1)
    return -(target * functional.log_softmax(student, dim=-1)).sum(dim=-1).mean()


def p4q_loss(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    weight: float,
) -> Float[Tensor, ""]:
    """The labels' mean cross-entropy plus `weight` times the teacher's, in nats."""
    loss = functional.cross_entropy(student, labels)
    if weight > 0:
        loss = loss + weight * teacher_cross_entropy(student, teacher)
    return loss
