"""The architecture of a loaded model."""

import open_clip
from transformers import CLIPModel, LlavaForConditionalGeneration, SiglipModel

from bitfront.artefact.architectures.architecture import Architecture
from bitfront.artefact.architectures.llava import llava_architecture
from bitfront.artefact.architectures.open_clip import open_clip_architecture
from bitfront.artefact.architectures.transformers_clip import transformers_architecture
from bitfront.errors import InvalidModel
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.layered import LayeredModel


def describe(model: LayeredModel) -> Architecture:
    """The architecture of a model.

    Raises:
        InvalidModel: No source file builds it.
    """
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
