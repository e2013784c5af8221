"""An artefact's process: what is told of one that ends."""

import pytest

from objectives.evaluation.artefact_process import last_error

FRAMES = """loading
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    load()
    ~~~~^^
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", ""),
        ("one\ntwo\n", "two"),
        (FRAMES + "ValueError: wrong\n", "ValueError: wrong"),
        (
            FRAMES + "ValidationError: 1 error for A\nb\n  Input should be c\n    See d\n",
            "ValidationError: 1 error for A b Input should be c See d",
        ),
        (FRAMES + "KeyError: 1\n\nDuring that:\n\n" + FRAMES + "OSError: 2", "OSError: 2"),
    ],
)
def test_the_last_error_is_one_line(said: str, reason: str) -> None:
    assert last_error(said) == reason


def test_a_long_message_is_cut() -> None:
    assert len(last_error(FRAMES + "ValueError: " + 200 * "wrong ")) <= 400
