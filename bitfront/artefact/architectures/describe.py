"""The architecture of a loaded model."""

import open_clip
from transformers import CLIPModel, LlavaForConditionalGeneration, SiglipModel

from bitfront.artefact.architectures.architecture import Architecture
from bitfront.artefact.architectures.llava import llava_architecture
from bitfront.artefact.architectures.open_clip import open_clip_architecture
from bitfront.artefact.architectures.transformers_clip import transformers_architecture
from bitfront.errors import InvalidModel
from bitfront.vlm.models.dual_encoder import DualEncoder
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.layered import LayeredModel


def describe(model: LayeredModel, *, reads_captions: bool = False) -> Architecture:
    """The architecture of a model.

    Args:
        model: The model.
        reads_captions: Whether a dual encoder's tokenizer travels along.

    Raises:
        InvalidModel: No source file builds it, or no file makes tokens as its tokenizer does.
    """
    made = _modules(model)
    if not reads_captions or made.config["words"] is not None:
        return made
    assert isinstance(model, DualEncoder)
    tokenizer = model.caption_tokenizer()
    if tokenizer is None:
        raise InvalidModel(
            "nothing can be built of this model for retrieval yet: its tokenizer is neither "
            "open_clip's own nor one of the package tokenizers, so what is built could read no "
            "captions; put a configuration onto a loaded model with 'apply', as docs/python.md "
            "shows"
        )
    return made.with_tokenizer(tokenizer)


def _modules(model: LayeredModel) -> Architecture:
    """The architecture without a dual encoder's tokenizer."""
    module = model.module
    if isinstance(module, open_clip.CLIP):
        return open_clip_architecture(module, model.settings)
    if isinstance(module, CLIPModel | SiglipModel):
        return transformers_architecture(module, model.settings)
    if isinstance(module, LlavaForConditionalGeneration):
        assert isinstance(model, GenerativeModel)
        return llava_architecture(module, model)
    raise InvalidModel(
        f"nothing can be built of a {type(module).__name__} yet: what rebuilds models knows "
        "open_clip's CLIP with a vision transformer, transformers' CLIP and SigLIP, LLaVA with a "
        "CLIP and a Llama decoder, and the bundled models"
    )
