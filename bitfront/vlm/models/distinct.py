"""Whether a dual encoder can tell classes apart at all, by tokens and by features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bitfront.vlm.models.dual_encoder import DualEncoder

_BATCH = 64
# Cosines of unit vectors in float32 differ by less from 1 through rounding alone.
_ALIKE = 1 - 1e-6


def class_problems(
    model: DualEncoder, classes: Sequence[str], captions: Sequence[Sequence[str]] = ()
) -> list[str]:
    """A sentence for each way in which classes cannot be told apart; none if all can.

    Args:
        model: The dual encoder.
        classes: The names of the classes.
        captions: For each template the captions of all classes; without, the names alone.
    """
    if len(classes) < 2:
        return []
    texts = captions or [classes]
    problem = token_problem(model, classes, texts)
    if problem is not None:
        return [problem]
    features = _class_features(model, texts)
    cosines = (features @ features.T).triu(diagonal=1)
    place = int(cosines.argmax())
    one, two = divmod(place, len(classes))
    if float(cosines[one, two]) < _ALIKE:
        return []
    return [
        f"the classes {classes[one]!r} and {classes[two]!r} have the same features, although their "
        "captions differ: the text tower does not look at their names, so its weights, its end "
        "token or its tokenizer are not the model's own"
    ]


def token_problem(
    model: DualEncoder, classes: Sequence[str], captions: Sequence[Sequence[str]]
) -> str | None:
    """A sentence that names two classes with the same tokens under every template, or None.

    The text tower does not run.
    """
    rows = torch.cat([model.tokenize(list(of_template)) for of_template in captions], dim=1)
    seen: dict[tuple[int, ...], int] = {}
    for number, row in enumerate(rows.tolist()):
        first = seen.setdefault(tuple(row), number)
        if first != number:
            return _same_tokens(model, classes, captions, first, number)
    return None


def _same_tokens(
    model: DualEncoder,
    classes: Sequence[str],
    texts: Sequence[Sequence[str]],
    one: int,
    two: int,
) -> str:
    said = f"the classes {classes[one]!r} and {classes[two]!r} have the same tokens"
    caption = texts[0][one]
    plain, longer = model.tokenize([caption, f"{caption} {classes[one]} {classes[two]}"])
    if torch.equal(plain, longer):
        return (
            f"{said}: {caption!r} is cut off after {model.context_length} tokens; use a shorter "
            "template or shorter names"
        )
    return (
        f"{said}: the tokenizer does not know their words; give them other names in "
        "data.classes, or the model its own tokenizer"
    )


@torch.no_grad()
def _class_features(
    model: DualEncoder, texts: Sequence[Sequence[str]]
) -> Float[Tensor, "classes d"]:
    """The mean of each class's unit features over the templates, as a unit vector."""
    sums = [
        torch.nn.functional.normalize(
            torch.cat(
                [
                    model.encode_texts(some).float().cpu()
                    for some in torch.split(model.tokenize(list(of_template)), _BATCH)
                ]
            ),
            dim=-1,
        )
        for of_template in texts
    ]
    return torch.nn.functional.normalize(torch.stack(sums).sum(dim=0), dim=-1)
