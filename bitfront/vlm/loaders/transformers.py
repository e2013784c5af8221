"""transformers' dual encoders and models that write text, from a folder or the hub.

Weights are read from safetensors only.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]  # it has none
from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPModel,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)

from bitfront.errors import InvalidModel, MissingModel
from bitfront.spec import ModelSpec
from bitfront.vlm.loaders.blockwise import fits, llava_weights, refuse_other_kinds
from bitfront.vlm.loaders.caption_tokenizers import of_transformers
from bitfront.vlm.loaders.explained import explained
from bitfront.vlm.loaders.files import (
    check_safetensors_folder,
    check_text_files,
    check_tokenizer_files,
)
from bitfront.vlm.loaders.image_text import image_text_model
from bitfront.vlm.loaders.llava import (
    LLAVA_KINDS,
    Llava,
    check_prompt,
    llava_model,
    load_text_processor,
)
from bitfront.vlm.loaders.naflex import packed_picture, unpacked_pictures
from bitfront.vlm.loaders.probe import (
    CAPTION,
    check_dual_encoder,
    check_tokens,
    picture,
    refuse_empty,
)
from bitfront.vlm.loaders.settings import config_settings, processor_settings, tokenizer_digest
from bitfront.vlm.models.caption_tokenizer import CaptionTokenizer
from bitfront.vlm.models.captions import Tokenize
from bitfront.vlm.models.dual_encoder import DualEncoder, DualEncoderInterface
from bitfront.vlm.models.generative import GenerativeModel
from bitfront.vlm.models.prompted import CausalText, Packing
from bitfront.vlm.models.settings import ModelSettings
from bitfront.vlm.models.whole import Generating

# Any other class that has features of pictures and of texts has the same signatures.
Dual = CLIPModel | SiglipModel
# Whose text towers look at padding, or are causal and never do.
_WITHOUT_MASK = frozenset({"clip", "metaclip_2", "siglip", "siglip2"})
# Rows of captions where neither model nor tokenizer is made for a length.
_LONGEST = 77
_COMPUTED = ("position_ids", "inv_freq")


class _LoadingInfo(TypedDict):
    """What transformers says of a checkpoint; a mismatch is name, stored and wanted shape."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]


def load_transformers(
    spec: ModelSpec, device: torch.device, memory_nbytes: int | None = None
) -> DualEncoder | GenerativeModel:
    """The dual encoder, or the model that writes text about pictures, that a job names.

    Raises:
        SpecError: It does not fit into the memory given, and is no LLaVA.
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
        raise MissingModel(f"there is no transformers model at {name}: the folder does not exist")
    place = str(Path(name).expanduser()) if is_path else name
    folder = Path(place)
    if folder.is_dir():
        check_text_files(folder)
    with _explained(name):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    writes = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not writes and not is_dual_encoder(config):
        raise InvalidModel(
            f"{name} is a {config.model_type!r} model, which neither compares pictures with texts "
            "as CLIP does nor writes text about them: 'bitfront models' lists what is known"
        )
    if folder.is_dir():
        check_safetensors_folder(folder)
        check_tokenizer_files(folder)
    if memory_nbytes is not None and not fits(
        folder, _dtype(spec, device, writes=writes), memory_nbytes
    ):
        refuse_other_kinds(spec.name, config.model_type, memory_nbytes)
        return _load_blockwise(config, folder, spec, device)
    if writes:
        return _load_generative(config.model_type, place, spec, device)
    return _load_dual_encoder(config.model_type, place, spec, device)


def is_dual_encoder(config: PreTrainedConfig) -> bool:
    """Whether transformers' model of a configuration has features of pictures and of texts."""
    if type(config) not in MODEL_MAPPING:
        return False
    kind = MODEL_MAPPING[type(config)]
    return hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")


def _explained(name: str) -> AbstractContextManager[None]:
    return explained("transformers", f"get {name!r} as a folder or from the hub or its cache")


def _load_dual_encoder(kind: str, place: str, spec: ModelSpec, device: torch.device) -> DualEncoder:
    name = spec.name
    with _explained(name):
        model, loading = AutoModel.from_pretrained(
            place,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_loading(name, loading)
    with _explained(name):
        images = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # theirs
            place, trust_remote_code=False
        )
    with explained("transformers", f"make the tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        refuse_empty(name, tokenizer)
    for part in ("text_model", "vision_model", "logit_scale"):
        if not hasattr(model, part):
            raise InvalidModel(
                f"{name} is a {type(model).__name__} without {part}, so it is not known how its "
                "pictures are compared with texts"
            )
    length = _context_length(kind, model, tokenizer)
    _choose_padding(kind, name, tokenizer)

    def preprocess(image: Image) -> Tensor:
        with explained("transformers", f"prepare an image for {name}"):
            given = images(images=image.convert("RGB"), return_tensors="pt")
            if "spatial_shapes" in given:
                return packed_picture(given)
            pixels: Tensor = given["pixel_values"]
        return pixels[0]

    embedding = model.text_model.get_input_embeddings()

    def tokenize(texts: Sequence[str]) -> Tensor:
        with explained("transformers", f"tokenize captions with {name}"):
            rows = tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            tokens: Tensor = rows["input_ids"]
        check_tokens(name, texts, tokens, embedding.num_embeddings)
        return tokens

    if kind == "clip":
        _choose_end(place, name, model, tokenizer, tokenize)
    settings = ModelSettings(
        tokenizer_digest(tokenizer), processor_settings(images), config_settings(model.config)
    )
    with explained("transformers", f"run {name}"):
        encoder = transformers_encoder(
            model.to(device),
            preprocess=preprocess,
            tokenize=tokenize,
            settings=settings,
            length=length,
            padding=_masked_padding(kind, tokenizer),
            caption_tokenizer=lambda: of_transformers(tokenizer, length),
        )
        check_dual_encoder(name, encoder)
    return encoder


def _context_length(kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = int(model.config.text_config.max_position_embeddings)
    return (
        positions if kind in _WITHOUT_MASK else min(positions, tokenizer.model_max_length, _LONGEST)
    )


def _masked_padding(kind: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a text tower must not look at; None where it may."""
    if kind in _WITHOUT_MASK or "attention_mask" not in tokenizer.model_input_names:
        return None
    return int(tokenizer.pad_token_id)


def _choose_padding(kind: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets a tokenizer without padding pad with its end token, where that changes nothing.

    Raises:
        InvalidModel: It has none, and the model looks at its padding.
    """
    if tokenizer.pad_token_id is not None:
        return
    # CLIP is causal and pooled at the first end token: whatever follows is not looked at.
    if kind == "clip" and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
        return
    raise InvalidModel(
        f"the tokenizer of {name} has no padding token: set pad_token in its "
        "tokenizer_config.json to the one that the model was trained with"
    )


def _choose_end(
    place: str,
    name: str,
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    tokenize: Tokenize,
) -> None:
    """Makes sure that captions are pooled at the end token that the tokenizer gives them.

    Raises:
        InvalidModel: It gives none, or config.json names another one.
    """
    with _explained(name):
        stored, _ = PreTrainedConfig.get_config_dict(place)
    text, end = model.text_model, tokenizer.eos_token_id
    if (stored.get("text_config") or stored).get("eos_token_id") is None:
        # The library's default would be that of another vocabulary, and its rule for 2 is older.
        text.eos_token_id = end
    (row,) = tokenize([CAPTION])
    if end is None or not (row == end).any():
        raise InvalidModel(
            f"the tokenizer of {name} puts no end token after a caption, but its text tower is "
            "pooled there: its tokenizer files are of another model"
        )
    pooled = _pooled(text.eos_token_id, row[None])
    if int(pooled) != int((row == end).int().argmax()):
        raise InvalidModel(
            f"{name} would pool captions at the token {int(row[pooled])}, but its tokenizer ends "
            f"them with {end}: correct text_config.eos_token_id ({text.eos_token_id}) in its "
            "config.json"
        )


def _load_generative(
    kind: str, place: str, spec: ModelSpec, device: torch.device
) -> GenerativeModel:
    """A model that writes text, its weights read shard by shard straight to the device.

    Raises:
        InvalidModel: Its weights cannot be read, are incomplete or do not fit, or it names no
            token that ends an answer.
    """
    dtype = _dtype(spec, device, writes=True)
    with _explained(spec.name):
        loaded_with_info = AutoModelForImageTextToText.from_pretrained(
            place,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, loading = cast("tuple[Generating, _LoadingInfo]", loaded_with_info)
    _check_loading(spec.name, loading)
    ends = _ends(spec.name, model)
    if kind not in LLAVA_KINDS:
        return image_text_model(spec.name, place, model, ends)
    llava = cast("Llava", model)
    processor_texts = load_text_processor(place, ends, llava)
    with explained("transformers", f"run {spec.name}"):
        loaded = llava_model(llava, processor_texts, ends)
        check_prompt(spec.name, llava, loaded)
    return loaded


def _dtype(spec: ModelSpec, device: torch.device, *, writes: bool) -> torch.dtype:
    """What a model's weights are loaded in."""
    if not writes:
        return torch.float32
    if spec.dtype != "auto":
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _ends(name: str, model: Generating) -> frozenset[int]:
    """The tokens that end an answer.

    Raises:
        InvalidModel: The model names none, or one that it does not know.
    """
    end = model.generation_config.eos_token_id
    if end is None:
        raise InvalidModel(
            f"{name} names no token that ends an answer: "
            "set eos_token_id in its generation_config.json"
        )
    ends = frozenset(end if isinstance(end, list | tuple) else [end])
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    if not ends or not all(type(one) is int and 0 <= one < rows for one in ends):
        raise InvalidModel(
            f"{name} ends answers with {end!r}, which is not one of its tokens (0 "
            f"to {rows - 1}): correct eos_token_id in its generation_config.json"
        )
    return ends


def _load_blockwise(
    config: PreTrainedConfig, folder: Path, spec: ModelSpec, device: torch.device
) -> GenerativeModel:
    """A LLaVA whose transformer blocks are read from their files when they run.

    Raises:
        InvalidModel: As for one that is loaded.
    """
    dtype = _dtype(spec, device, writes=True)
    with _explained(spec.name), init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(  # type: ignore[no-untyped-call]  # theirs
            config, dtype=dtype
        )
    model.tie_weights()  # which a model without values forgets
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    llava = cast("Llava", model)
    stored = llava_weights(spec.name, llava, folder, dtype, device)
    ends = _ends(spec.name, cast("Generating", model))
    processor_texts = load_text_processor(str(folder), ends, llava)
    with explained("transformers", f"run {spec.name}"):
        loaded = llava_model(llava, processor_texts, ends, stored)
        check_prompt(spec.name, llava, loaded)
    return loaded


def _check_loading(name: str, loading: _LoadingInfo) -> None:
    """Refuses weights that are not exactly those that the configuration asks for.

    Raises:
        InvalidModel: A tensor has another shape, is missing, or has no place.
    """
    if loading["mismatched_keys"]:
        key, stored, wanted = min(loading["mismatched_keys"])
        raise InvalidModel(
            f"the weights of {name} have another shape than its config.json says: {key} is "
            f"{tuple(stored)}, but must be {tuple(wanted)}"
        )
    missing = loading["missing_keys"]
    if missing:
        raise InvalidModel(
            f"the weights of {name} lack {len(missing)} tensors, first {min(missing)}"
        )
    # Old checkpoints hold what is computed today.
    further = {key for key in loading["unexpected_keys"] if not key.endswith(_COMPUTED)}
    if further:
        raise InvalidModel(
            f"the weights of {name} hold {len(further)} tensors that its config.json has no place "
            f"for, first {min(further)}: weights and config.json are of different models"
        )


def transformers_encoder(
    model: Dual,
    *,
    preprocess: Callable[[Image], Tensor],
    tokenize: Tokenize,
    settings: ModelSettings | None = None,
    length: int | None = None,
    padding: int | None = None,
    caption_tokenizer: Callable[[], CaptionTokenizer | None] = lambda: None,
) -> DualEncoder:
    """The dual encoder of a transformers model that is already built.

    CLIP gets no attention mask, since it is causal and pooled at the end of text, and SigLIP none,
    since it was trained to attend to its padding.

    Args:
        model: The model.
        preprocess: A picture to its pixels.
        tokenize: Captions to rows of tokens.
        settings: What these depend on; None where that is fixed.
        length: Tokens in a row; None for as many as the text tower has positions.
        padding: The token that the text tower must not look at; None where it may.
        caption_tokenizer: Gives what `tokenize` does as a file.
    """
    embeddings = model.vision_model.embeddings
    shape: tuple[int, ...]
    if "spatial_shapes" in inspect.signature(model.get_image_features).parameters:
        shape = tuple(preprocess(picture()).shape)
    else:
        side = embeddings.image_size
        shape = (embeddings.patch_embedding.in_channels, side, side)
    assert len(shape) == 3
    interface = DualEncoderInterface(
        encode_images=partial(_encode_images, model),
        encode_texts=partial(_encode_texts, model, padding),
        preprocess=preprocess,
        tokenize=tokenize,
        token_embedding=model.text_model.get_input_embeddings(),
        logit_scale=model.logit_scale,
        image_shape=shape,
        context_length=length or model.text_model.config.max_position_embeddings,
        causal_text=_causal_text(model) if isinstance(model, CLIPModel) else None,
        settings=settings,
        caption_tokenizer=caption_tokenizer,
    )
    return DualEncoder(model, interface)


# Bound with `partial`, not closures: a copy of the dual encoder then runs its own module.
def _encode_images(model: Dual, pixels: Tensor) -> Tensor:
    takes_patches = "spatial_shapes" in inspect.signature(model.get_image_features).parameters
    given = unpacked_pictures(pixels) if takes_patches else {"pixel_values": pixels}
    get = cast("Callable[..., BaseModelOutputWithPooling]", model.get_image_features)
    features = get(**given).pooler_output
    assert isinstance(features, Tensor)
    return features


def _encode_texts(model: Dual, padding: int | None, tokens: Tensor) -> Tensor:
    given = {"input_ids": tokens}
    if padding is not None:
        given["attention_mask"] = (tokens != padding).long()
    get = cast("Callable[..., BaseModelOutputWithPooling]", model.get_text_features)
    features = get(**given).pooler_output
    assert isinstance(features, Tensor)
    return features


def _causal_text(model: CLIPModel) -> CausalText:
    """How CLIP's text tower runs packed rows."""
    text = model.text_model

    def pooled(tokens: Tensor) -> Tensor:
        return _pooled(text.eos_token_id, tokens)

    return CausalText(pooled, partial(_encode_packed, model))


def _pooled(end: int, tokens: Tensor) -> Tensor:
    # transformers takes an end token of 2 for a mistake in old configurations.
    sought = tokens if end == 2 else (tokens == end).int()
    return sought.argmax(dim=-1)


def _encode_packed(model: CLIPModel, embedded: Tensor, packing: Packing) -> Tensor:
    text = model.text_model
    # Not text.embeddings: it refuses more places than a row has.
    x = embedded + text.embeddings.position_embedding(packing.places)
    mask = packing.mask(x.dtype)[None, None]
    x = text.encoder(inputs_embeds=x[None], attention_mask=mask).last_hidden_state[0]
    features: Tensor = model.text_projection(text.final_layer_norm(x[packing.ends]))
    return features
