"""Times of an artefact and of the model at full precision, in turns."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitfront.artefact.runtime.serve import ARTEFACT, in_turns
from bitfront.errors import FailedBuild
from objectives.evaluation.artefact_process import ArtefactProcess, Seconds
from objectives.evaluation.packed import write_packed
from objectives.evaluation.speed import TOKEN, TOKENS, Speed, Speedup, WriteReference, take_times
from objectives.evaluation.verification import verify
from tests.support.artefacts import evaluator, random_configuration


class Process(ArtefactProcess):
    """Says times that are known: a batch of one, and an answer of two lengths."""

    def __init__(self, **seconds: tuple[list[float], list[float]]) -> None:
        self._known = seconds

    def time(self, given: dict[str, Tensor], *, beside: bool = False) -> Seconds:
        names = self._known if beside else {ARTEFACT: self._known[ARTEFACT]}
        found = {}
        for name in names:
            forward, further = (torch.tensor(part).double() for part in self._known[name])
            rows = [forward]
            if "limits" in given:
                rows = [forward, forward + TOKENS * further]
            found[name] = torch.stack(rows, dim=1)
        return found


class Answers:
    """Samples of a model that writes."""

    def sample(self, size: int) -> dict[str, Tensor]:
        return {"tokens": torch.zeros(size, 2)}

    def writing(self) -> dict[str, Tensor] | None:
        return self.sample(1) | {"limits": torch.tensor([1, 1 + TOKENS])}


def taken(folder: Path, process: Process) -> Speed:
    return take_times(process, Answers(), [1], folder, "packed", lambda _: None)


def test_a_speedup_is_the_median_of_what_ran_one_after_the_other(tmp_path: Path) -> None:
    """The second repeat was disturbed, in both: its ratio tells as much as the others."""
    process = Process(
        artefact=([1.0, 10.0, 2.0], [0.1, 0.1, 0.1]), float32=([3.0, 20.0, 8.0], [0.2, 0.1, 0.4])
    )

    found = taken(tmp_path, process)

    (reference,) = found.references
    assert reference.dtype == "float32"
    assert reference.speedup["1"] == Speedup(3.0, 2.0, 4.0)
    token = reference.speedup[TOKEN]
    assert (token.median, token.low, token.high) == pytest.approx((2.0, 1.0, 4.0))
    assert (found.latency_s, reference.latency_s) == ({"1": 2.0}, {"1": 8.0})
    assert found.token_s == pytest.approx(0.1)
    assert reference.token_s == pytest.approx(0.2)
    assert found.repeats == {"1": 3, TOKEN: 3}
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_took_no_time_has_no_speedup(tmp_path: Path) -> None:
    process = Process(artefact=([1.0], [-0.5]), float32=([1.0], [0.5]))

    found = taken(tmp_path, process)

    assert found.token_s == 0
    assert set(found.references[0].speedup) == {"1"}


def called(name: str, order: list[str], seconds: float, _: dict[str, Any]) -> None:
    order.append(name)
    time.sleep(seconds)


def test_models_take_turns_after_a_round_that_warms_up() -> None:
    order: list[str] = []
    models = {name: partial(called, name, order, 0.1) for name in ("a", "b")}

    found = in_turns(models, {}, 3, 60)

    assert order == ["a", "b"] * 4
    assert {name: len(rows) for name, rows in found.items()} == {"a": 3, "b": 3}


def test_calls_that_take_no_time_are_repeated_more_often() -> None:
    order: list[str] = []

    found = in_turns({"a": partial(called, "a", order, 0)}, {}, 3, 60)

    assert len(found["a"]) == 30


def test_what_takes_too_long_runs_once() -> None:
    order: list[str] = []
    given = {"limits": torch.tensor([1, 9])}

    found = in_turns({"a": partial(called, "a", order, 0.01)}, given, 3, 0.001)

    assert [len(row) for row in found["a"]] == [2]
    assert order == ["a", "a"]


def nothing(_: Path) -> None:
    """Leaves the folder of the reference empty."""


def without_room(folder: Path) -> None:
    (folder / "half").write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("write", "said"),
    [(nothing, "holds no readable card.json"), (without_room, "No space left on device")],
)
def test_a_reference_that_cannot_be_used_takes_nothing_from_the_artefact(
    write: WriteReference, said: str, tmp_path: Path
) -> None:
    kept = evaluator("digit-clip")
    chosen = random_configuration(kept, 0, None)
    write_packed(kept, chosen, tmp_path, {})
    before = sorted(tmp_path.iterdir())
    error = kept.evaluate(chosen).values["error"]

    found = verify(kept, chosen, tmp_path, error, "packed", write)

    assert said in str(found.untimed)
    assert found.references == ()
    assert found.latency_s["1"] > 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.runtime
def test_an_artefact_that_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    kept = evaluator("digit-clip")
    chosen = random_configuration(kept, 0, None)
    write_packed(kept, chosen, tmp_path, {})

    with ArtefactProcess(tmp_path, "packed") as process, pytest.raises(FailedBuild, match="size"):
        process.time({"pixels": torch.zeros(1, 3, 5, 5)})
