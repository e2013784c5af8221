"""How long docs/tutorial.md takes from a fresh clone: a script types it and compares the screen.

    python -m benchmarks.tutorial [--repository .]

Each command is listed with its seconds; the end has the minutes with and without the installation.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.support.console import Command, File, Terminal, differences, steps, visit


def main() -> None:
    """Clones, follows, compares, and counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path, default=Path(), help="What is cloned.")
    repository = parser.parse_args().repository.resolve()
    document = (repository / "docs" / "tutorial.md").read_text(encoding="utf-8")
    install, _, rest = document.partition("## See what works")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        own = {name: text for name, text in os.environ.items() if not name.startswith("BITFRONT_")}
        with Terminal(home, own | {"HOME": folder}) as terminal:
            for part, text in (("installation", install), ("tutorial", rest)):
                begin_s = time.monotonic()
                for step in steps(text.replace("git clone URL", f"git clone {repository}")):
                    wrong += _done(step, terminal, home / "first")
                print(f"{part}: {(time.monotonic() - begin_s) / 60:.1f} min")
    print(f"{wrong} commands showed something else")
    sys.exit(wrong > 0)


def _done(step: File | Command, terminal: Terminal, folder: Path) -> bool:
    """Takes a step; whether it showed something else than stands there."""
    if isinstance(step, File):
        (folder / step.name).write_text(step.text, encoding="utf-8")
        return False
    begin_s = time.monotonic()
    found = differences(step, terminal.run(step, look=visit))
    print(f"{time.monotonic() - begin_s:6.1f} s  {step.text}", *found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    main()
