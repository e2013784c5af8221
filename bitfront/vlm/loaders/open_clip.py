"""open_clip's models, with weights from a file, a folder, or a pretrained tag."""

import difflib
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from bitfront.errors import InvalidModel, MissingModel
from bitfront.spec import ModelSpec
from bitfront.vlm.loaders.settings import preprocess_settings, tokenizer_digest
from bitfront.vlm.models.captions import Tokenize
from bitfront.vlm.models.dual_encoder import DualEncoder, DualEncoderInterface
from bitfront.vlm.models.prompted import CausalText, Packing
from bitfront.vlm.models.settings import ModelSettings

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def load_open_clip(spec: ModelSpec, device: torch.device) -> DualEncoder:
    """The open_clip model that the specification names.

    Raises:
        MissingModel: The model, its weights, or the network to fetch them is missing.
        InvalidModel: The weights are of another model, or the file is not a safe checkpoint.
    """
    model = _create(spec)
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise InvalidModel(f"{spec.name} is a {type(model).__name__}, not a dual encoder")
    try:
        tokenizer = open_clip.get_tokenizer(spec.name)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise MissingModel(
            f"the tokenizer of {spec.name} is neither on the hub nor in its cache: "
            f"{_first_line(error)}"
        ) from error
    config = PreprocessCfg(**model.visual.preprocess_cfg)
    transform = image_transform_v2(config, is_train=False)

    def preprocess(image: Image) -> Tensor:
        pixels: Tensor = transform(image)
        return pixels

    def tokenize(texts: Sequence[str]) -> Tensor:
        tokens: Tensor = tokenizer(list(texts))
        return tokens

    settings = ModelSettings(tokenizer_digest(tokenizer), preprocess_settings(config))
    return open_clip_encoder(
        model.to(device), preprocess=preprocess, tokenize=tokenize, settings=settings
    )


def _create(spec: ModelSpec) -> nn.Module:
    """The model with its weights, as open_clip has it."""
    schema, _, place = spec.name.rpartition(":")
    quick_gelu = False
    if schema == "local-dir":
        _check_folder(Path(place))
    elif not schema:
        quick_gelu = _check_weights(spec.name, spec.weights)
    wanted = f"{spec.name} with weights {spec.weights}" if spec.weights else spec.name
    try:
        model: nn.Module = open_clip.create_model(
            spec.name,
            pretrained=None if schema else spec.weights,
            device="cpu",
            force_quick_gelu=quick_gelu,
            require_pretrained=True,
            weights_only=True,
        )
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidModel(
            f"{wanted}: the checkpoint cannot be read without running code from it: "
            f"give a safetensors file ({_first_line(error)})"
        ) from error
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        if "state_dict" in str(error) or isinstance(error, KeyError | ValueError):
            raise InvalidModel(f"{wanted}: the weights do not fit: {error}") from error
        raise MissingModel(
            f"open_clip could not get {wanted} from the hub or its cache: "
            f"{_first_line(error)}{_tags(spec.name)}"
        ) from error
    return model


def open_clip_encoder(
    model: open_clip.CLIP | open_clip.CustomTextCLIP,
    *,
    preprocess: Callable[[Image], Tensor],
    tokenize: Tokenize,
    settings: ModelSettings | None = None,
) -> DualEncoder:
    """The dual encoder of an open_clip model that is already built."""
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        embedding: nn.Embedding = text.token_embedding
    else:
        embedding = text.transformer.get_input_embeddings()
    interface = DualEncoderInterface(
        encode_images=model.encode_image,
        encode_texts=model.encode_text,
        preprocess=preprocess,
        tokenize=tokenize,
        token_embedding=embedding,
        logit_scale=model.logit_scale,
        image_shape=(3, height, width),
        context_length=model.context_length,
        causal_text=_causal_text(text),
        settings=settings,
    )
    return DualEncoder(model, interface)


def _causal_text(text: nn.Module) -> CausalText | None:
    """How the text tower runs packed rows; None where it sees later tokens or pools otherwise."""
    if not isinstance(text, open_clip.CLIP | TextTransformer) or text.attn_mask is None:
        return None
    if isinstance(text, open_clip.CLIP):
        pool, end = text.text_pool_type, text.text_eos_id
    else:
        pool, end = text.pool_type, text.eos_id
        if text.cls_emb is not None:
            return None
    if pool not in ("argmax", "eos"):
        return None

    def pooled(tokens: Tensor) -> Tensor:
        sought = tokens if pool == "argmax" else (tokens == end).int()
        return sought.argmax(dim=-1)

    return CausalText(pooled, partial(_encode_packed, text))


def _encode_packed(
    text: open_clip.CLIP | TextTransformer, embedded: Tensor, packing: Packing
) -> Tensor:
    dtype = text.transformer.get_cast_dtype()
    x = embedded.to(dtype) + text.positional_embedding[packing.places].to(dtype)
    x = text.transformer(x[None], attn_mask=packing.mask(dtype))[0]
    features: Tensor = text.ln_final(x[packing.ends])
    return features if text.text_projection is None else text.text_projection(features)


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        raise MissingModel(f"there is no open_clip model at {folder}: no open_clip_config.json")
    if not any(path.suffix in _SUFFIXES for path in folder.iterdir()):
        raise MissingModel(f"the folder {folder} has no weights: no {', '.join(_SUFFIXES)} file")


def _check_weights(name: str, weights: str | None) -> bool:
    """Whether the weights were trained with QuickGELU, whatever the name says.

    Raises:
        MissingModel: open_clip knows no such model or tag, and there is no such file.
        InvalidModel: The file is not a checkpoint that is safe to read.
    """
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise MissingModel(
            f"open_clip has no model {name!r}; nearest are {', '.join(near) or 'none'}; "
            "a folder is written local-dir:PATH, a hub name hf-hub:OWNER/NAME"
        )
    if weights is None:
        raise MissingModel(f"{name} needs weights: a checkpoint file{_tags(name)}")
    config = open_clip.get_pretrained_cfg(name, weights)
    if config:
        return bool(config.get("quick_gelu", False))
    if not Path(weights).is_file():
        if Path(weights).name != weights or Path(weights).suffix in _SUFFIXES:
            raise MissingModel(f"there is no file {weights} with weights of {name}")
        raise MissingModel(
            f"weights {weights!r} of {name} are neither a file nor a pretrained tag{_tags(name)}"
        )
    if Path(weights).suffix not in _SUFFIXES:
        raise InvalidModel(f"the checkpoint {weights} must end in one of {', '.join(_SUFFIXES)}")
    return False


def _tags(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return f"; its tags are {', '.join(tags)}" if tags else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
