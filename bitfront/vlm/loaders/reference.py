"""The bundled references: the contrastive one as a dual encoder, the generative one beside it."""

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from bitfront.errors import MissingModel
from bitfront.reference.digit_clip import load_clip, tokenize
from bitfront.reference.digit_llava import END, decode, encode_answer, encode_prompt, load_llava
from bitfront.reference.scenes import SIDE, normalise
from bitfront.spec import REFERENCE_CLIP, REFERENCE_LLAVA
from bitfront.vlm.loaders.llava import Llava, TextProcessor, llava_model
from bitfront.vlm.loaders.open_clip import open_clip_encoder
from bitfront.vlm.models.dual_encoder import DualEncoder
from bitfront.vlm.models.generative import GenerativeModel, Prompt


def load_reference(name: str, device: torch.device) -> DualEncoder | GenerativeModel:
    """The trained model of digit scenes, or that of digit questions.

    Raises:
        MissingModel: There is none of that name, or its checkpoint is not there.
    """
    if name == REFERENCE_CLIP:
        model = load_clip().to(device)
        return open_clip_encoder(model, preprocess=preprocess_picture, tokenize=tokenize)
    if name == REFERENCE_LLAVA:
        llava = load_llava()
        llava.to(device)  # type: ignore[arg-type]  # transformers hides torch's signature
        return digit_llava_model(llava)
    raise MissingModel(
        f"there is no bundled model {name!r}: model.name is {REFERENCE_CLIP} or {REFERENCE_LLAVA}"
    )


def digit_llava_model(model: Llava) -> GenerativeModel:
    """The generative model of a LLaVA with the reference's words."""
    processor_texts = TextProcessor(prepare_question, encode_answer, decode)
    return llava_model(model, processor_texts, frozenset({END}))


def prepare_question(text: str, image: Image | None) -> Prompt:
    """The reference's prompt: `<image>` in the text stands for the image's tokens."""
    tokens = encode_prompt(text)
    return Prompt(tokens, None if image is None else preprocess_picture(image))


def preprocess_picture(image: Image) -> Tensor:
    """The picture in grey values on the scenes' canvas, normalised as they are."""
    grey = image.convert("L").resize((SIDE, SIDE), Resampling.BICUBIC)
    return normalise(torch.from_numpy(np.array(grey))[None])[0]
