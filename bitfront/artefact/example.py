"""The script that shows how an artefact is used: short enough to be read, and run by a test."""

from collections.abc import Mapping
from typing import Final

_CLASSIFIER: Final = '''\
"""Says what a picture shows, with torch, safetensors and Pillow alone.

    python example.py PICTURE
"""

import sys
from pathlib import Path

from PIL import Image

from packed_model import load

model = load(Path(__file__).parent)
for name, share in model.classify(Image.open(sys.argv[1]), top=3):
    print(f"{100 * share:5.1f} %  {name}")
'''

_ANSWERER: Final = '''\
"""Answers a question about a picture.

    python example.py PICTURE "QUESTION"
"""

import sys
from pathlib import Path

from PIL import Image

from packed_model import load

model = load(Path(__file__).parent)
print(model.answer(Image.open(sys.argv[1]), sys.argv[2]))
'''


def example_script(card: Mapping[str, object]) -> str:
    """A script that loads the folder it lies in, and uses the model."""
    return _CLASSIFIER if card["task"] == "classification" else _ANSWERER
