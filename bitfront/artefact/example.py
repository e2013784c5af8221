"""The script that shows how an artefact is used: short enough to be read, and run by a test."""

from collections.abc import Mapping
from typing import Any, Final

EXAMPLE: Final = "example.py"

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

_FINDER: Final = '''\
"""Puts the pictures that fit a caption best first, with {packages}.

    python example.py "CAPTION" PICTURE ...
"""

import sys
from pathlib import Path

from PIL import Image

from {module} import load

caption, *paths = sys.argv[1:]
model = load(Path(__file__).parent)
pictures = model.image_features([Image.open(path) for path in paths])
cosines = model.similarity(pictures, model.text_features(caption))[:, 0].tolist()
for cosine, path in sorted(zip(cosines, paths), reverse=True):
    print(f"{{cosine:6.3f}}  {{path}}")
'''

_ONNX: Final = '''\
"""Says what a picture shows, with onnxruntime, numpy and Pillow: python example.py PICTURE"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(__file__).parent
classes = json.loads((folder / "card.json").read_text(encoding="utf-8"))["classes"]
{picture}
pixels = (np.asarray(picture, np.float32).reshape({height}, {width}, -1) / 255 - {mean}) / {std}
pixels = np.broadcast_to(pixels.transpose(2, 0, 1), (1, 3, {height}, {width})).astype(np.float32)
session = onnxruntime.InferenceSession(folder / "image.onnx")
shares = np.exp(session.run(["logits"], {{"pixels": pixels}})[0][0].astype(float))
for place in np.argsort(-shares)[:3]:
    print(f"{{100 * shares[place] / shares.sum():5.1f}} %  {{classes[place]}}")
'''

_OPENED: Final = 'picture = Image.open(sys.argv[1]).convert("{mode}")'
_SQUASHED: Final = _OPENED + ".resize(({width}, {height}), Image.Resampling.{method})"
_CROPPED: Final = (
    f"{_OPENED}\n"
    + """\
size = [{width} * side // min(picture.size) for side in picture.size]
left, top = (round((side - {width}) / 2) for side in size)
picture = picture.resize(size, Image.Resampling.{method})
picture = picture.crop((left, top, left + {width}, top + {height}))"""
)


def onnx_example(card: Mapping[str, Any]) -> str:
    """A script that lies beside ONNX models and says what a picture shows."""
    settings = card["preprocessing"]
    height, width = settings["size"]
    size = {"height": height, "width": width}
    picture = _SQUASHED if settings["resize"] == "squash" else _CROPPED
    method = settings["interpolation"].upper()
    return _ONNX.format(
        picture=picture.format(mode=settings["mode"], method=method, **size),
        mean=settings["mean"],
        std=settings["std"],
        **size,
    )


_EXPORTED_CLASSIFIER: Final = '''\
"""Says what a picture shows, with {packages}: python example.py PICTURE"""

import sys
from pathlib import Path

from PIL import Image

from exported_model import load

model = load(Path(__file__).parent)
for name, share in model.classify(Image.open(sys.argv[1]), top=3):
    print(f"{{100 * share:5.1f}} %  {{name}}")
'''

_EXPORTED_ANSWERER: Final = '''\
"""Answers a question about a picture, with {packages}.

    python example.py PICTURE "QUESTION"
"""

import sys
from pathlib import Path

from PIL import Image

from exported_model import load

model = load(Path(__file__).parent)
print(model.answer(Image.open(sys.argv[1]), sys.argv[2]))
'''


def exported_example(card: Mapping[str, Any]) -> str:
    """A script that lies beside exported models and their module, and uses them."""
    scripts = {
        "classification": _EXPORTED_CLASSIFIER,
        "retrieval": _FINDER,
        "answering": _EXPORTED_ANSWERER,
    }
    packages = ", ".join(card["requires"])
    return scripts[card["task"]].format(packages=packages, module="exported_model")


def transformers_example(card: Mapping[str, Any]) -> str:
    """A script that lies beside a checkpoint of transformers, and uses it."""
    return exported_example(card).replace("exported_model", "transformers_model")


def gguf_example(card: Mapping[str, Any]) -> str:
    """A script that lies beside gguf files and their module, and asks them."""
    script = _EXPORTED_ANSWERER.replace("exported_model", "gguf_model")
    return script.format(packages=", ".join(card["requires"]))


def example_script(card: Mapping[str, Any]) -> str:
    """A script that loads the folder it lies in, and uses the model."""
    if card["task"] == "retrieval":
        return _FINDER.format(packages=", ".join(card["requires"]), module="packed_model")
    return _CLASSIFIER if card["task"] == "classification" else _ANSWERER
