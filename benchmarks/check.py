"""Seconds of opening every sample of a folder: the first time, and again.

Run as `python -m benchmarks.check [COUNT]`; the pictures are small PNGs in a temporary folder.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bitfront.spec import DataSpec
from objectives.data.inspection import Inspector
from objectives.data.preview import preview_data

_SIDE = 32


def main(count: int) -> None:
    """Prints the seconds of both checks."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        for number in range(count):
            place = root / f"class {number % 10}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place, compress_level=1)
        share = count // 4
        samples = dict.fromkeys(("calibration", "tuning", "selection", "test"), share)
        spec = DataSpec.model_validate(
            {"source": "image_folder", "path": str(root), "samples": samples}
        )
        for title in ("first", "again"):
            started_s = time.perf_counter()
            preview_data(spec, Inspector(Path(folder) / "inspected.db"))
            seconds = time.perf_counter() - started_s
            sys.stdout.write(f"{title}: {seconds:.1f} s for {4 * share} pictures\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
