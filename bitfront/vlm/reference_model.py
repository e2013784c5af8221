"""The bundled reference as a dual encoder."""

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from bitfront.reference.digit_clip import load_clip, tokenize
from bitfront.reference.scenes import SIDE, normalise
from bitfront.vlm.encoder import DualEncoder
from bitfront.vlm.open_clip_models import open_clip_encoder


def load_reference(device: torch.device) -> DualEncoder:
    """The trained digit-scene model.

    Raises:
        MissingModel: Its checkpoint is not there.
    """
    return open_clip_encoder(
        load_clip().to(device), preprocess=preprocess_picture, tokenize=tokenize
    )


def preprocess_picture(image: Image) -> Tensor:
    """The picture in grey values on the scenes' canvas, normalised as they are."""
    grey = image.convert("L").resize((SIDE, SIDE), Resampling.BICUBIC)
    return normalise(torch.from_numpy(np.array(grey))[None])[0]
