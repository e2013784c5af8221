"""The families of models that are known, those that are found by looking, and those refused."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bitfront.spec import ModelSource


class Standing(StrEnum):
    """What is known of a family.

    Every weight of a known one is accounted for in a test, with a small model. The layers of a
    generic one are found in the same way, and `bitfront validate` says what is left.
    """

    KNOWN = "known"
    GENERIC = "generic"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family of models.

    Attributes:
        name: What people call it.
        source: The library that loads it, as `model.source` names it; None for any.
        standing: What is known of it.
        tells: What is special, which limits it has, or why it is refused.
    """

    name: str
    source: ModelSource | None
    standing: Standing
    tells: str = ""


_O, _T = ModelSource.OPEN_CLIP, ModelSource.TRANSFORMERS
_K, _G, _R = Standing.KNOWN, Standing.GENERIC, Standing.REFUSED
_WHOLE: Final = "no P4Q and no profile.vision; built into checkpoints by its library only"

FAMILIES: Final = (
    ModelFamily("CLIP ViT", _O, _K, "of plain transformers it has every target"),
    ModelFamily("CLIP ModifiedResNet", _O, _K),
    ModelFamily("timm ConvNeXt", _O, _K, "depthwise convolutions have their nearest codes"),
    ModelFamily("timm ViT", _O, _K),
    ModelFamily("timm ResNet", _O, _K),
    ModelFamily("timm EfficientNet", _O, _K, "depthwise convolutions have their nearest codes"),
    ModelFamily("CoCa", _O, _K, "its caption decoder stays at 16 bits"),
    ModelFamily("SigLIP", _O, _K, "SigLIP 2 of fixed size too"),
    ModelFamily("MobileCLIP", _O, _K, "depthwise convolutions have their nearest codes"),
    ModelFamily("CLIP", _T, _K),
    ModelFamily("SigLIP", _T, _K, "SigLIP 2 of fixed size too"),
    ModelFamily("SigLIP 2 NaFlex", _T, _K, "pictures keep their shape"),
    ModelFamily("AltCLIP", _T, _K),
    ModelFamily("Chinese-CLIP", _T, _K),
    ModelFamily(
        "LLaVA 1.5", _T, _K, "has P4Q and profile.vision; of a CLIP and a Llama it has every target"
    ),
    ModelFamily("LLaVA-NeXT", _T, _K, "has P4Q and profile.vision"),
    ModelFamily("LLaVA-OneVision", _T, _K, _WHOLE),
    ModelFamily("Idefics3", _T, _K, _WHOLE),
    ModelFamily("SmolVLM", _T, _K, f"needs the package num2words; {_WHOLE}"),
    ModelFamily("PaliGemma", _T, _K, _WHOLE),
    ModelFamily("Qwen2-VL", _T, _K, _WHOLE),
    ModelFamily("Qwen2.5-VL", _T, _K, _WHOLE),
    ModelFamily("Qwen3-VL", _T, _K, _WHOLE),
    ModelFamily(
        "Qwen3-VL-MoE",
        _T,
        _K,
        f"each expert has layers of its own, and profile.measure is output_kl; {_WHOLE}",
    ),
    ModelFamily("InternVL", _T, _K, f"the port of transformers; {_WHOLE}"),
    ModelFamily("Gemma 3", _T, _K, _WHOLE),
    ModelFamily("other towers of open_clip and timm", _O, _G),
    ModelFamily("other models with features of pictures and texts", _T, _G),
    ModelFamily("other models that AutoModelForImageTextToText loads", _T, _G, _WHOLE),
    ModelFamily(
        "mixtures whose experts are stored transposed or with biases",
        _T,
        _G,
        "their experts stay at 16 bits",
    ),
    ModelFamily(
        "models whose processor has no image token",
        _T,
        _R,
        "it is not known where a picture stands in a text (BLIP)",
    ),
    ModelFamily(
        "models without a module that reads pictures apart from one that writes text",
        _T,
        _R,
        "their layers have no towers to be searched in",
    ),
    ModelFamily("models with code of their own", None, _R, "such code is never run"),
    ModelFamily(
        "open_clip's scaled cosine attention", _O, _R, "its weights are not seen by any module"
    ),
    ModelFamily(
        "attention with bias_k, bias_v or add_zero_attn",
        None,
        _R,
        "what it adds to keys and values has no place in the rewritten attention",
    ),
)
