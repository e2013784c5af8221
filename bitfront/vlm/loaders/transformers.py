"""transformers' CLIP, SigLIP and LLaVA, from a folder or the hub, weights in safetensors only."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    SiglipModel,
)

from bitfront.errors import InvalidModel, MissingModel
from bitfront.spec import ModelSpec
from bitfront.vlm.loaders.llava import LLAVA_KINDS, Llava, llava_model, load_text_processor
from bitfront.vlm.loaders.settings import config_settings, processor_settings, tokenizer_digest
from bitfront.vlm.models.captions import Tokenize
from bitfront.vlm.models.dual_encoder import DualEncoder, DualEncoderInterface
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.prompted import CausalText, Packing
from bitfront.vlm.models.settings import ModelSettings

_KINDS = ("clip", "siglip")


class _Report(TypedDict):
    """What transformers says of a checkpoint; a mismatch is name, stored and wanted shape."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]


def load_transformers(spec: ModelSpec, device: torch.device) -> DualEncoder | GenerativeModel:
    """The CLIP, SigLIP, LLaVA or LLaVA-NeXT that the specification names.

    Raises:
        MissingModel: There is no such folder or hub name, or it has no safetensors weights.
        InvalidModel: It is another kind of model, or its weights are incomplete.
    """
    name = spec.name
    if spec.weights is not None:
        raise InvalidModel(
            f"weights {spec.weights!r}: a transformers model has its weights beside its config, "
            "so leave weights out and name the folder"
        )
    is_path = Path(name).is_absolute() or name.startswith((".", "~"))
    if is_path and not Path(name).expanduser().is_dir():
        raise MissingModel(f"there is no transformers model at {name}: no such folder")
    place = str(Path(name).expanduser()) if is_path else name
    try:
        kind = AutoConfig.from_pretrained(place, trust_remote_code=False).model_type
        if kind in LLAVA_KINDS:
            return _load_llava(kind, place, spec, device)
        if kind not in _KINDS:
            known = (*_KINDS, *LLAVA_KINDS)
            raise InvalidModel(f"{name} is a {kind!r} model, but must be one of {known}")
        model, report = AutoModel.from_pretrained(
            place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        images = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # theirs
            place, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MissingModel(
            f"transformers could not get {name!r} as a folder or from the hub or its cache: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    _refuse_missing(name, report["missing_keys"])
    length = model.config.text_config.max_position_embeddings

    def preprocess(image: Image) -> Tensor:
        pixels: Tensor = images(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return pixels[0]

    def tokenize(texts: Sequence[str]) -> Tensor:
        rows = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        tokens: Tensor = rows["input_ids"]
        return tokens

    settings = ModelSettings(
        tokenizer_digest(tokenizer), processor_settings(images), config_settings(model.config)
    )
    return transformers_encoder(
        model.to(device), preprocess=preprocess, tokenize=tokenize, settings=settings
    )


def _load_llava(kind: str, place: str, spec: ModelSpec, device: torch.device) -> GenerativeModel:
    """A LLaVA, its weights read shard by shard straight to the device.

    Raises:
        InvalidModel: Its weights cannot be read, are incomplete or do not fit, or it names no
            token that ends an answer.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if spec.dtype != "auto":
        dtype = getattr(torch, spec.dtype)
    load = cast("Callable[..., tuple[Llava, _Report]]", LLAVA_KINDS[kind].from_pretrained)
    try:
        model, report = load(
            place,
            use_safetensors=True,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except SafetensorError as error:
        raise InvalidModel(
            f"the weights of {spec.name} cannot be read: {error}; fetch them again"
        ) from error
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise InvalidModel(
            f"the weights of {spec.name} have another shape than its config.json says: {name} is "
            f"{tuple(stored)}, but must be {tuple(wanted)}"
        )
    _refuse_missing(spec.name, report["missing_keys"])
    end = model.generation_config.eos_token_id
    if end is None:
        raise InvalidModel(
            f"{spec.name} names no token that ends an answer: "
            "set eos_token_id in its generation_config.json"
        )
    ends = frozenset([end] if isinstance(end, int) else end)
    processor_texts = load_text_processor(place, ends, config_settings(model.config))
    return llava_model(model, processor_texts, ends)


def _refuse_missing(name: str, keys: Collection[str]) -> None:
    if keys:
        raise InvalidModel(f"the weights of {name} lack {len(keys)} tensors, first {min(keys)}")


def transformers_encoder(
    model: CLIPModel | SiglipModel,
    *,
    preprocess: Callable[[Image], Tensor],
    tokenize: Tokenize,
    settings: ModelSettings | None = None,
) -> DualEncoder:
    """The dual encoder of a transformers model that is already built.

    No attention mask is given: CLIP is causal and pooled at the end of text, and SigLIP was
    trained to attend to its padding.
    """
    embeddings = model.vision_model.embeddings
    channels = embeddings.patch_embedding.in_channels

    interface = DualEncoderInterface(
        encode_images=partial(_encode_images, model),
        encode_texts=partial(_encode_texts, model),
        preprocess=preprocess,
        tokenize=tokenize,
        token_embedding=model.text_model.embeddings.token_embedding,
        logit_scale=model.logit_scale,
        image_shape=(channels, embeddings.image_size, embeddings.image_size),
        context_length=model.text_model.embeddings.position_embedding.num_embeddings,
        causal_text=_causal_text(model) if isinstance(model, CLIPModel) else None,
        settings=settings,
    )
    return DualEncoder(model, interface)


# Bound with `partial`, not closures: a copy of the dual encoder then runs its own module.
def _encode_images(model: CLIPModel | SiglipModel, pixels: Tensor) -> Tensor:
    features: Tensor = model.get_image_features(pixel_values=pixels).pooler_output
    return features


def _encode_texts(model: CLIPModel | SiglipModel, tokens: Tensor) -> Tensor:
    features: Tensor = model.get_text_features(input_ids=tokens).pooler_output
    return features


def _causal_text(model: CLIPModel) -> CausalText:
    """How CLIP's text tower runs packed rows."""
    text = model.text_model

    def pooled(tokens: Tensor) -> Tensor:
        # transformers takes an end token of 2 for a mistake in old configurations.
        old = text.eos_token_id == 2
        sought = tokens if old else (tokens == text.eos_token_id).int()
        return sought.argmax(dim=-1)

    return CausalText(pooled, partial(_encode_packed, model))


def _encode_packed(model: CLIPModel, embedded: Tensor, packing: Packing) -> Tensor:
    text = model.text_model
    # Not text.embeddings: it refuses more places than a row has.
    x = embedded + text.embeddings.position_embedding(packing.places)
    mask = packing.mask(x.dtype)[None, None]
    x = text.encoder(inputs_embeds=x[None], attention_mask=mask).last_hidden_state[0]
    features: Tensor = model.text_projection(text.final_layer_norm(x[packing.ends]))
    return features
