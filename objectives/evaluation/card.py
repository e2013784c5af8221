"""The card of an artefact: what it is, and the digests of the files beside it."""

import json
from pathlib import Path

from bitfront.artefact.runtime.packed_model import CARD
from bitfront.files import file_digest


def write_card(card: dict[str, object], folder: Path) -> None:
    """Writes the card, with the digests of the files beside it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CARD)
    card["files"] = {name: _digest(folder / name) for name in names}
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (folder / CARD).write_text(f"{text}\n", encoding="utf-8")


def _digest(path: Path) -> dict[str, object]:
    return {"nbytes": path.stat().st_size, "sha256": file_digest(path)}
