"""Small models with random weights of every known family, saved as their libraries save them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import open_clip
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

from bitfront.spec import ModelSource, ModelSpec
from tests.support.clip_models import TEXT, VISION, tokenizer, weights_of
from tests.support.llava_models import Build, save_llava

hf: Any = transformers  # whose types know some of its classes only
SIDE, PATCH = 24, 8
WIDTH = 32
_MARKS = (
    *("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>"),
    *("<|vision_end|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<start_of_image>", "<end_of_image>", "<image_soft>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
)
_WORDS = (
    *("<pad>", "<s>", "<unk>", "</s>", "USER", "ASSISTANT", ":", ".", "?", ",", "what", "is"),
    *("there", "the", "a", "how", "many", "cat", "dog", "red", "blue", "yes", "no", "photo", "of"),
    *("one", "two", "A", "B", "picture", "describe"),
)
WORDS: Final = (*_WORDS, *_MARKS)
END: Final = WORDS.index("</s>")


class Saved(Protocol):
    """A model or a processor of transformers."""

    def save_pretrained(self, folder: Path, /) -> object:
        """Writes it into a folder."""


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A family's small model.

    Attributes:
        name: The family, and where it has several forms, which.
        source: Whose model it is.
        save: Writes it into a folder, which a job can name.
        writes: Whether it writes text; else it compares pictures with texts.
    """

    name: str
    source: ModelSource
    save: Callable[[Path], None]
    writes: bool = False

    def spec(self, folder: Path) -> ModelSpec:
        """The section of a job that names the saved model."""
        is_folder = self.source is ModelSource.OPEN_CLIP
        name = f"local-dir:{folder}" if is_folder else str(folder)
        return ModelSpec(source=self.source, name=name, device="cpu")


def fill(model: nn.Module, seed: int = 0) -> None:
    """Gives a model weights in which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                is_scale = name.endswith("weight") or "gamma" in name or "layer_scale" in name
                parameter.copy_(0.1 * noise + (1.0 if is_scale else 0))


def _save_open_clip(
    vision: dict[str, Any], text: dict[str, Any], **model: object
) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": SIDE, **vision},
            "text_cfg": {"context_length": 12, "width": 24, "heads": 4, "layers": 2, **text},
            **model,
        }
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        built = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        fill(built)
        save_file(weights_of(built), folder / "open_clip_model.safetensors")

    return save


def _letters() -> Saved:
    """A tokenizer of letters: that of SigLIP 2 takes a whole text for one word."""
    codes = {mark: code for code, mark in enumerate(("<pad>", "<eos>", "<bos>", "<unk>"))}
    codes |= {letter: len(codes) + code for code, letter in enumerate("abcdefghijklmnoprstuvwz.▁")}
    built: Saved = hf.Siglip2Tokenizer(vocab=codes, merges=[])
    return built


def _save_dual(
    model: Callable[[], Saved],
    images: Callable[[], Saved],
    *,
    start: bool = True,
    words: Callable[[], Saved] | None = None,
) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        built: Any = model()
        fill(built)
        built.save_pretrained(folder)
        images().save_pretrained(folder)
        (tokenizer(12, start=start) if words is None else words()).save_pretrained(folder)

    return save


_CROP = {"height": SIDE, "width": SIDE}
_BERT: Final = {**TEXT, "hidden_size": 24, "max_position_embeddings": 20, "type_vocab_size": 1}


def _crops() -> Saved:
    built: Saved = hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_CROP)
    return built


def _whole() -> Saved:
    built: Saved = hf.SiglipImageProcessor(size=_CROP)
    return built


_TEXT_MODEL: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
}
_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_GRID: Final = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def words(**special: str) -> Saved:
    """A tokenizer of words and of every family's marks."""
    model = Tokenizer(WordLevel({word: code for code, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model.add_special_tokens(list(_MARKS))
    built: Saved = hf.PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    return built


def _save_writing(
    model: Callable[[], Saved], processor: Callable[[], Saved]
) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        built: Any = model()
        fill(built)
        built.generation_config.eos_token_id = END
        built.save_pretrained(folder)
        processor().save_pretrained(folder)

    return save


def _llava(kind: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        save_llava(folder, Build(kind=kind))

    return save


def _code(mark: str) -> int:
    return WORDS.index(mark)


def _onevision() -> Saved:
    built: Saved = hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            vision_config=hf.SiglipVisionConfig(**_TOWER),
            text_config=hf.Qwen2Config(**_TEXT_MODEL),
            image_token_id=_code("<image>"),
            video_token_id=_code("<video>"),
            image_grid_pinpoints=_GRID,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )
    return built


def _onevision_processor() -> Saved:
    built: Saved = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=_CROP, image_grid_pinpoints=_GRID),
        words(),
        hf.LlavaOnevisionVideoProcessor(size=_CROP),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    )
    return built


def _idefics(kind: str) -> Saved:
    config = getattr(hf, f"{kind}Config")(
        vision_config={**_TOWER, "image_size": 32},
        text_config=hf.LlamaConfig(**_TEXT_MODEL),
        scale_factor=2,
        image_token_id=_code("<image>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model: Saved = getattr(hf, f"{kind}ForConditionalGeneration")(config)
    return model


def _idefics_processor(kind: str) -> Saved:
    images = getattr(hf, f"{kind}ImageProcessor")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    built: Saved
    if kind == "SmolVLM":
        videos = hf.SmolVLMVideoProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        )
        built = hf.SmolVLMProcessor(images, words(), videos, image_seq_len=4)
    else:
        built = hf.Idefics3Processor(images, words(), image_seq_len=4)
    return built


def _paligemma() -> Saved:
    built: Saved = hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(
            vision_config=hf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
            text_config=hf.GemmaConfig(**_TEXT_MODEL),
            image_token_id=_code("<image>"),
            projection_dim=WIDTH,
        )
    )
    return built


def _paligemma_processor() -> Saved:
    images = hf.SiglipImageProcessor(size=_CROP)
    images.image_seq_length = (SIDE // PATCH) ** 2
    built: Saved = hf.PaliGemmaProcessor(images, words(image_token="<image>"))
    return built


_QWEN: Final[dict[str, Any]] = {
    "image_token_id": _code("<|image_pad|>"),
    "video_token_id": _code("<|video_pad|>"),
    "vision_start_token_id": _code("<|vision_start|>"),
    "vision_end_token_id": _code("<|vision_end|>"),
}
_QWEN_TOWER: Final[dict[str, Any]] = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def _qwen(kind: str, vision: dict[str, Any], **text: object) -> Saved:
    config = getattr(hf, f"{kind}Config")(
        vision_config={**_QWEN_TOWER, **vision},
        text_config={
            **_TEXT_MODEL,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
            **text,
        },
        **_QWEN,
    )
    model: Saved = getattr(hf, f"{kind}ForConditionalGeneration")(config)
    return model


def _qwen_processor(kind: str) -> Saved:
    limits = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    images = hf.Qwen2VLImageProcessor(patch_size=PATCH, size=limits)
    maker = getattr(hf, f"{kind}Processor")
    video = hf.Qwen3VLVideoProcessor if kind == "Qwen3VL" else hf.Qwen2VLVideoProcessor
    built: Saved = maker(images, words(), video(patch_size=PATCH))
    return built


def _internvl() -> Saved:
    built: Saved = hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(
            vision_config=hf.InternVLVisionConfig(
                **{**_TOWER, "image_size": [32, 32], "patch_size": [PATCH, PATCH]}
            ),
            text_config=hf.Qwen2Config(**_TEXT_MODEL),
            image_token_id=_code("<IMG_CONTEXT>"),
            image_seq_length=4,
            downsample_ratio=0.5,
        )
    )
    return built


def _internvl_processor() -> Saved:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    images = hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, max_patches=2)
    videos = hf.InternVLVideoProcessor(size={"height": 32, "width": 32})
    built: Saved = hf.InternVLProcessor(images, words(**marks), videos, image_seq_length=4)
    return built


def _gemma() -> Saved:
    tower = {**_TOWER, "image_size": 32}
    built: Saved = hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            vision_config=hf.SiglipVisionConfig(**tower, vision_use_head=False),
            text_config=hf.Gemma3TextConfig(
                **_TEXT_MODEL,
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=16,
            ),
            mm_tokens_per_image=4,
            boi_token_index=_code("<start_of_image>"),
            eoi_token_index=_code("<end_of_image>"),
            image_token_index=_code("<image_soft>"),
        )
    )
    return built


def _gemma_processor() -> Saved:
    marks = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft>",
    }
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    built: Saved = hf.Gemma3Processor(images, words(**marks), image_seq_length=4)
    return built


_MIXTURE: Final[dict[str, Any]] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
_QWEN2_TOWER: Final[dict[str, Any]] = {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2}
_QWEN25_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "out_hidden_size": WIDTH,
    "window_size": 32,
    "fullatt_block_indexes": [1],
}
_QWEN3_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def _open_clip(name: str, save: Callable[[Path], None]) -> SmallModel:
    return SmallModel(f"open_clip {name}", ModelSource.OPEN_CLIP, save)


def _dual(name: str, save: Callable[[Path], None]) -> SmallModel:
    return SmallModel(name, ModelSource.TRANSFORMERS, save)


def _writing(name: str, save: Callable[[Path], None]) -> SmallModel:
    return SmallModel(name, ModelSource.TRANSFORMERS, save, writes=True)


_VIT: Final = {"patch_size": PATCH, "width": 24, "layers": 2, "head_width": 6}
_TIMM: Final = {"timm_pool": "avg", "timm_proj": "linear"}
_SIGLIP_TEXT: Final = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
SMALL_MODELS: Final = (
    _open_clip("CLIP ViT", _save_open_clip(_VIT, {})),
    _open_clip(
        "CLIP ModifiedResNet",
        _save_open_clip({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}, {}),
    ),
    *(
        _open_clip(
            f"timm {kind}",
            _save_open_clip({"timm_model_name": name, **_TIMM, "image_size": 160}, {}),
        )
        for kind, name in (
            ("ConvNeXt", "test_convnext"),
            ("ViT", "test_vit"),
            ("ResNet", "test_resnet"),
            ("EfficientNet", "test_efficientnet"),
        )
    ),
    _open_clip(
        "CoCa",
        _save_open_clip(
            {**_VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
            {"embed_cls": True, "output_tokens": True},
            multimodal_cfg={
                "context_length": 12,
                "vocab_size": 49408,
                "width": 24,
                "heads": 4,
                "layers": 1,
                "attn_pooler_heads": 4,
            },
            custom_text=True,
        ),
    ),
    _open_clip(
        "SigLIP",
        _save_open_clip(
            {
                "timm_model_name": "test_vit3",
                "timm_pool": "map",
                "timm_proj": "none",
                "image_size": 160,
            },
            {**_SIGLIP_TEXT, "width": 24},
            custom_text=True,
            init_logit_bias=-10,
            embed_dim=96,
        ),
    ),
    _open_clip(
        "MobileCLIP",
        _save_open_clip(
            {
                "timm_model_name": "fastvit_mci0",
                "timm_pool": "avg",
                "timm_proj": None,
                "image_size": 64,
            },
            {"no_causal_mask": False},
            embed_dim=1024,
            custom_text=True,
        ),
    ),
    _dual(
        "CLIP",
        _save_dual(
            lambda: hf.CLIPModel(
                hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
            ),
            _crops,
        ),
    ),
    _dual(
        "SigLIP",
        _save_dual(
            lambda: hf.SiglipModel(
                hf.SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION)
            ),
            _whole,
            start=False,
        ),
    ),
    _dual(
        "SigLIP 2 NaFlex",
        _save_dual(
            lambda: hf.Siglip2Model(
                hf.Siglip2Config(
                    text_config={
                        **TEXT,
                        "projection_size": 24,
                        "vocab_size": 29,
                        "max_position_embeddings": 32,
                        "eos_token_id": 1,
                        "bos_token_id": 2,
                    },
                    vision_config={**VISION, "num_patches": 9},
                )
            ),
            lambda: hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=9),
            words=_letters,
        ),
    ),
    _dual(
        "AltCLIP",
        _save_dual(
            lambda: hf.AltCLIPModel(
                hf.AltCLIPConfig(
                    text_config={**_BERT, "project_dim": 16},
                    vision_config=VISION,
                    projection_dim=16,
                )
            ),
            _crops,
        ),
    ),
    _dual(
        "Chinese-CLIP",
        _save_dual(
            lambda: hf.ChineseCLIPModel(
                hf.ChineseCLIPConfig(text_config=_BERT, vision_config=VISION, projection_dim=16)
            ),
            lambda: hf.ChineseCLIPImageProcessor(size=_CROP, crop_size=_CROP),
        ),
    ),
    _writing("LLaVA 1.5", _llava("llava")),
    _writing("LLaVA-NeXT", _llava("llava_next")),
    _writing("LLaVA-OneVision", _save_writing(_onevision, _onevision_processor)),
    _writing(
        "Idefics3",
        _save_writing(lambda: _idefics("Idefics3"), lambda: _idefics_processor("Idefics3")),
    ),
    _writing(
        "SmolVLM", _save_writing(lambda: _idefics("SmolVLM"), lambda: _idefics_processor("SmolVLM"))
    ),
    _writing("PaliGemma", _save_writing(_paligemma, _paligemma_processor)),
    _writing(
        "Qwen2-VL",
        _save_writing(lambda: _qwen("Qwen2VL", _QWEN2_TOWER), lambda: _qwen_processor("Qwen2VL")),
    ),
    _writing(
        "Qwen2.5-VL",
        _save_writing(
            lambda: _qwen("Qwen2_5_VL", _QWEN25_TOWER), lambda: _qwen_processor("Qwen2_5_VL")
        ),
    ),
    _writing(
        "Qwen3-VL",
        _save_writing(lambda: _qwen("Qwen3VL", _QWEN3_TOWER), lambda: _qwen_processor("Qwen3VL")),
    ),
    _writing(
        "Qwen3-VL-MoE",
        _save_writing(
            lambda: _qwen("Qwen3VLMoe", _QWEN3_TOWER, **_MIXTURE),
            lambda: _qwen_processor("Qwen3VL"),
        ),
    ),
    _writing("InternVL", _save_writing(_internvl, _internvl_processor)),
    _writing("Gemma 3", _save_writing(_gemma, _gemma_processor)),
)
