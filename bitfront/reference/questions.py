"""Digit questions: handwritten digits on a 2 x 2 grid, questions about them, and their answers.

The scans are those of the digit scenes, split the same way: no split shows a scan that another
one has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from bitfront.reference.scenes import (
    NATURAL,
    SIDE,
    WORDS,
    Jitter,
    SplitTitle,
    digit_scans,
    name_digit,
    normalise,
    render,
    split_scans,
)

NOTHING = "nothing"
EMPTY = 10  # what an empty place holds, where 0 to 9 are digits
PLACES = ("top left", "top right", "bottom left", "bottom right")
LINES = {
    "top row": (0, 1),
    "bottom row": (2, 3),
    "left column": (0, 2),
    "right column": (1, 3),
}
# From a place to the one that lies above it, and so on; None outside of the grid.
NEIGHBOURS: dict[str, tuple[int | None, ...]] = {
    "above": (None, None, 0, 1),
    "below": (2, 3, None, None),
    "left of": (None, 0, None, 2),
    "right of": (1, None, 3, None),
}
PLURALS = (
    *("zeros", "ones", "twos", "threes", "fours"),
    *("fives", "sixes", "sevens", "eights", "nines"),
)
OPTIONS = 4  # of a question about what lies somewhere
KINDS = ("count", "presence", "neighbour", "place", "line")

_CELL = SIDE / 2
_DRIFT = 1.5  # a scan's centre is at most so far from its place's centre, both ways


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """Some pictures with questions, `n` of each.

    Attributes:
        images: `(n, 3, 24, 24)` float32, normalised as the digit scenes are.
        questions: Such as `what is above the two`.
        answers: Such as `three`, `yes`, `nothing` or, for a line, `three nothing`.
        kinds: `(n,)` int64, indices into `KINDS`.
        contents: `(n, 4)` int64, the digit at each of the `PLACES`, or `EMPTY`.
        scans: `(n, 4)` int64, the scans' indices in `load_digits`, or -1.
    """

    images: Tensor
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    kinds: Tensor
    contents: Tensor
    scans: Tensor

    @property
    def identities(self) -> tuple[str, ...]:
        """The scans and the question of each sample."""
        return tuple(
            f"{'+'.join(str(scan) for scan in row if scan >= 0)}:{question}"
            for row, question in zip(self.scans.tolist(), self.questions, strict=True)
        )


def draw_questions(
    split: SplitTitle,
    count: int,
    seed: int,
    *,
    jitter: Jitter = NATURAL,
    kinds: Sequence[str] = KINDS,
) -> Questions:
    """Pictures of a split's scans, each with one question; equal arguments draw equal samples.

    Every kind of question is drawn equally often, give or take one.
    """
    rng = np.random.default_rng([get_args(SplitTitle).index(split), seed, len(KINDS)])
    rounds = -(-count // len(kinds))
    drawn = rng.permuted(np.tile(np.arange(len(kinds)), (rounds, 1)), axis=1).ravel()[:count]
    contents = np.empty((count, len(PLACES)), dtype=np.int64)
    questions, answers = [], []
    for row, kind in enumerate(drawn):
        contents[row], question, answer = _draw(kinds[kind], rng)
        questions.append(question)
        answers.append(answer)
    images, scans = paint(contents, split, rng, jitter)
    return Questions(
        images=images,
        questions=tuple(questions),
        answers=tuple(answers),
        kinds=torch.tensor([KINDS.index(kinds[kind]) for kind in drawn]),
        contents=torch.from_numpy(contents),
        scans=torch.from_numpy(scans),
    )


def draw_options(questions: Questions, split: SplitTitle, seed: int) -> list[tuple[str, ...]]:
    """Options for each question: its answer among others of its kind, in a random order.

    `yes` and `no`, all five counts, and four of what may lie at a place or in a line.
    """
    rng = np.random.default_rng([get_args(SplitTitle).index(split), seed, len(KINDS), OPTIONS])
    found = []
    for kind, answer in zip(questions.kinds.tolist(), questions.answers, strict=True):
        match KINDS[kind]:
            case "presence":
                options = ["yes", "no"]
            case "count":
                options = list(WORDS[: len(PLACES) + 1])
            case _:
                options = [answer]
                while len(options) < OPTIONS:
                    other = " ".join(
                        _name(int(one)) for one in rng.integers(11, size=answer.count(" ") + 1)
                    )
                    if other not in options:
                        options.append(other)
        found.append(tuple(options[place] for place in rng.permutation(len(options))))
    return found


def paint(
    contents: np.ndarray, split: SplitTitle, rng: np.random.Generator, jitter: Jitter
) -> tuple[Tensor, np.ndarray]:
    """Normalised pictures `(n, 3, 24, 24)` of `contents` `(n, 4)`, and the scans in them."""
    pixels, digits = digit_scans()
    pool = split_scans(split)
    scans = np.full_like(contents, -1)
    for digit in range(10):
        wanted = contents == digit
        scans[wanted] = rng.choice(pool[digits[pool] == digit], size=int(wanted.sum()))
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * _CELL + _CELL / 2
    centres = corners + rng.uniform(-_DRIFT, _DRIFT, (*contents.shape, 2))
    shown = pixels[torch.from_numpy(scans.clip(min=0))]
    shown = torch.where(torch.from_numpy(scans >= 0)[..., None, None], shown, 0.0)
    return normalise(render(shown, centres, rng, jitter)), scans


def _draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, str, str]:
    """What lies at the places, a question of that kind, and its answer."""
    contents = rng.integers(10, size=len(PLACES))
    if rng.random() < 0.5:
        contents[rng.integers(len(PLACES))] = EMPTY
    digit = int(rng.integers(10))
    if kind == "count":
        wanted = rng.permutation(np.flatnonzero(contents != EMPTY))
        chosen = wanted[: rng.integers(len(wanted) + 1)]
        contents = _without(contents, digit, rng)
        contents[chosen] = digit
        return contents, f"how many {PLURALS[digit]} are there", WORDS[len(chosen)]
    if kind == "presence":
        contents = _without(contents, digit, rng)
        is_there = bool(rng.random() < 0.5)
        if is_there:
            contents[rng.choice(np.flatnonzero(contents != EMPTY))] = digit
        return contents, f"is there {name_digit(digit)}", "yes" if is_there else "no"
    if kind == "neighbour":
        relation = str(rng.choice(list(NEIGHBOURS)))
        inside = [place for place, near in enumerate(NEIGHBOURS[relation]) if near is not None]
        place = int(rng.choice(inside))
        contents = _without(contents, digit, rng)
        contents[place] = digit
        near = NEIGHBOURS[relation][place]
        assert near is not None
        return contents, f"what is {relation} the {WORDS[digit]}", _name(contents[near])
    if kind == "place":
        place = int(rng.integers(len(PLACES)))
        return contents, f"what is at the {PLACES[place]}", _name(contents[place])
    line = str(rng.choice(list(LINES)))
    answer = " ".join(_name(contents[place]) for place in LINES[line])
    return contents, f"what is in the {line}", answer


def _without(contents: np.ndarray, digit: int, rng: np.random.Generator) -> np.ndarray:
    """The contents with every `digit` replaced by another one."""
    others = (digit + rng.integers(1, 10, size=len(contents))) % 10
    return np.where(contents == digit, others, contents)


def _name(content: int) -> str:
    return NOTHING if content == EMPTY else WORDS[content]
