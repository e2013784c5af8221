"""docs/tutorial.md, followed literally from its second section on: the first one installs."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.console import Command, File, Terminal, differences, steps, visit

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
INSTALLED = TUTORIAL[TUTORIAL.index("## See what works") :]


@pytest.mark.timeout(1200)
def test_a_terminal_shows_what_stands_below_each_command(ray_folder: str) -> None:
    own = {name: text for name, text in os.environ.items() if not name.startswith("BITFRONT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    home = Path(ray_folder, "home")  # short: a long path of the database makes lines wrap
    surroundings = own | {"HOME": str(home), "PATH": path, "RAY_TMPDIR": ray_folder}
    surroundings["CUDA_VISIBLE_DEVICES"] = ""  # a GPU would have a line of its own
    first = home / "first"
    first.mkdir(parents=True)
    done, wrong = [], []

    with Terminal(first, surroundings) as terminal:
        for step in steps(INSTALLED):
            if isinstance(step, File):
                (first / step.name).write_text(step.text)
                continue
            found = differences(step, terminal.run(step, look=visit))
            wrong += [f"$ {step.text}", *found] if found else []
            done.append(step.text.split()[:2])

    assert not wrong, "\n".join(wrong)
    used = {words[1] for words in done if words[0] == "bitfront"}
    assert used >= {"doctor", "init", "submit", "status", "resume", "front", "best", "build"}
    assert "bitfront" not in (first / "tell.py").read_text()


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("start: 2 s in every process", "start: 1 min 03 s in every process"),
        ("error  8.6 %", "error 9.1 %"),
        ("bits/weight 3.35", "bits/weight 3.4"),
        ("memory: 1.67 GB a worker", "memory: 2.1 GB a worker"),
        ("is driven by vm:22884, in sqlite:////a/b.db", "is driven by x-1:5, in sqlite:////c.d/e"),
        ("answers at http://127.0.0.1:8480/^C", "answers at http://127.0.0.1:33287/"),
        ("trials ━━━━╸━━ 4/12 error 9 %", "trials ━━━━━╸━ 5/12 error 8 %"),
    ],
)
def test_what_differs_from_run_to_run_is_the_same(told: str, found: str) -> None:
    assert differences(Command("", (told,)), [found, ""]) == []


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("everything that bitfront needs works", "everything works"),
        ("error  8.6 %", "error 10.1 %"),
        ("size 188 kB", "size 189 kB"),
        ("trial 11 (program)", "trial 10 (program)"),
        ("trials ━━━━━━━ 12/12", "trials ━━━━━━━ 11/12"),
        ("divergence 0.0057", "divergence 0.0157"),
        ("one", "one\ntwo"),
    ],
)
def test_what_should_be_the_same_is_not_let_through(told: str, found: str) -> None:
    assert differences(Command("", (told,)), found.split("\n")) != []
