"""open_clip's models, with weights from a file, a folder, or a pretrained tag."""

import difflib
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from bitfront.errors import InvalidModel, MissingModel
from bitfront.spec import ModelSpec
from bitfront.vlm.loaders.caption_tokenizers import of_open_clip
from bitfront.vlm.loaders.explained import explain, explained
from bitfront.vlm.loaders.files import (
    SUFFIXES,
    Shapes,
    check_text_files,
    check_tokenizer_files,
    checkpoint_shapes,
    read_json,
)
from bitfront.vlm.loaders.probe import check_dual_encoder, check_tokens
from bitfront.vlm.loaders.settings import preprocess_settings, tokenizer_digest
from bitfront.vlm.models.caption_tokenizer import CaptionTokenizer
from bitfront.vlm.models.captions import Tokenize
from bitfront.vlm.models.dual_encoder import DualEncoder, DualEncoderInterface
from bitfront.vlm.models.prompted import CausalText, Packing
from bitfront.vlm.models.settings import ModelSettings

# The order in which open_clip itself looks for them, and the last one that its training writes.
_PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.pth", "model.pth", "epoch_latest.pt"),
)


def load_open_clip(spec: ModelSpec, device: torch.device) -> DualEncoder:
    """The open_clip model that the specification names.

    Raises:
        MissingModel: The model, its weights, or the network to fetch them is missing.
        InvalidModel: The weights are of another model, or the file is no safe checkpoint.
    """
    model = _create(spec)
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa):
        raise InvalidModel(f"{spec.name} is a {type(model).__name__}, not a dual encoder")
    with explained("open_clip", f"make the tokenizer of {spec.name}"):
        tokenizer = open_clip.get_tokenizer(spec.name)
    given = model.visual.preprocess_cfg
    with explained("open_clip", f"make the preprocessing {given} of {spec.name}"):
        config = PreprocessCfg(**given)
        transform = image_transform_v2(config, is_train=False)

    embedding = _token_embedding(model)

    def preprocess(image: Image) -> Tensor:
        pixels: Tensor = transform(image)
        return pixels

    def tokenize(texts: Sequence[str]) -> Tensor:
        with explained("open_clip", f"tokenize captions with {spec.name}"):
            tokens: Tensor = tokenizer(list(texts))
        check_tokens(spec.name, texts, tokens, embedding.num_embeddings)
        return tokens

    settings = ModelSettings(tokenizer_digest(tokenizer), preprocess_settings(config))
    with explained("open_clip", f"run {spec.name}"):
        encoder = open_clip_encoder(
            model.to(device),
            preprocess=preprocess,
            tokenize=tokenize,
            settings=settings,
            caption_tokenizer=lambda: of_open_clip(tokenizer),
        )
        check_dual_encoder(spec.name, encoder)
    return encoder


def _create(spec: ModelSpec) -> nn.Module:
    """The model with its weights, as open_clip has it."""
    schema, _, place = spec.name.rpartition(":")
    if schema and spec.weights is not None:
        raise InvalidModel(
            f"{spec.name} has its own weights, but weights: {spec.weights} is given beside it: "
            "leave weights out, or name the model that the checkpoint is of"
        )
    if schema == "local-dir":
        folder = Path(place).expanduser()
        return _create_from_file(f"local-dir:{folder}", _weights_in(folder))
    if schema:
        return _create_from_hub(spec, quick_gelu=False)
    config = _check_weights(spec.name, spec.weights)
    if config is None:
        return _create_from_file(spec.name, Path(str(spec.weights)))
    return _create_from_hub(spec, quick_gelu=bool(config.get("quick_gelu", False)))


def _create_from_hub(spec: ModelSpec, *, quick_gelu: bool) -> nn.Module:
    """A model whose weights open_clip finds: by a pretrained tag, or in a repository."""
    wanted = f"{spec.name} with weights {spec.weights}" if spec.weights else spec.name
    try:
        with _without_warnings():
            model: nn.Module = open_clip.create_model(
                spec.name,
                pretrained=spec.weights,
                device="cpu",
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
                weights_only=True,
            )
    except RuntimeError as error:
        if "state_dict" in str(error):
            raise explain(error, f"open_clip could not load {wanted}") from error
        # Whatever went wrong in fetching them, open_clip raises a RuntimeError that quotes it.
        raise MissingModel(
            f"open_clip could not get {wanted} from the hub or its cache: "
            f"{_first_line(error)}{_tags(spec.name)}"
        ) from error
    except (OSError, KeyError, ValueError, AssertionError, pickle.UnpicklingError) as error:
        raise explain(error, f"open_clip could not load {wanted}") from error
    except SafetensorError as error:
        raise explain(error, f"open_clip could not load {wanted}") from error
    return model


def _create_from_file(name: str, path: Path) -> nn.Module:
    """A model with the weights of a file, which open_clip would not find in every folder."""
    shapes = checkpoint_shapes(path)
    with explained("open_clip", f"build {name}"), _without_warnings():
        model: nn.Module = open_clip.create_model(
            name, device="cpu", load_weights=False, pretrained_text=False, weights_only=True
        )
    _refuse_other_shapes(model, shapes, path)
    with explained("open_clip", f"load {path}"), _without_warnings():
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    return model


def _refuse_other_shapes(model: nn.Module, shapes: Shapes, path: Path) -> None:
    """open_clip would resize positions that do not fit, and say nothing."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("logit_scale", "logit_bias")):
            continue
        stored = shapes.get(name, shapes.get(name.removeprefix("text.")))
        if stored is not None and stored != tuple(tensor.shape):
            raise InvalidModel(
                f"the weights in {path} have another shape than the model's configuration says: "
                f"{name} is {stored}, but must be {tuple(tensor.shape)}"
            )


def _weights_in(folder: Path) -> Path:
    """The checkpoint in a folder with a configuration of open_clip.

    Raises:
        MissingModel: The folder lacks one of them.
        InvalidModel: Several files could be the checkpoint, or the configuration is none.
    """
    if not folder.is_dir():
        raise MissingModel(f"there is no open_clip model at {folder}: the folder does not exist")
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    config = folder / "open_clip_config.json"
    if not config.is_file():
        beside = (
            f"; with a checkpoint of open_clip's training, give its model's name as model.name and "
            f"{found[0]} as model.weights"
            if found
            else ""
        )
        raise MissingModel(
            f"there is no open_clip model at {folder}: no open_clip_config.json{beside}"
        )
    check_text_files(folder)
    model = read_json(config).get("model_cfg")
    vision, text = (
        (model.get(part) if isinstance(model, dict) else None)
        for part in ("vision_cfg", "text_cfg")
    )
    if not (isinstance(vision, dict) and isinstance(text, dict)):
        raise InvalidModel(
            f"{config} does not describe a model: its model_cfg must have vision_cfg and text_cfg"
        )
    if text.get("hf_tokenizer_name"):
        check_tokenizer_files(folder)
    names = {path.name: path for path in found}
    preferred = [names[name] for name in _PREFERRED if name in names]
    numbered = {int(m[1]): p for p in found if (m := re.fullmatch(r"epoch_(\d+)\.pt", p.name))}
    if preferred or len(found) == 1:
        return (preferred or found)[0]
    if not found:
        raise MissingModel(f"the folder {folder} has no weights: no {', '.join(SUFFIXES)} file")
    if len(numbered) == len(found):
        return numbered[max(numbered)]
    raise InvalidModel(
        f"the folder {folder} has several checkpoints ({', '.join(names)}): keep one, or call the "
        f"one that counts {_PREFERRED[0]}"
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Drops what open_clip writes into the root logger while it builds a model."""

    def is_other(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def _token_embedding(
    model: open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa,
) -> nn.Embedding:
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        embedding: nn.Embedding = text.token_embedding
    else:
        embedding = text.transformer.get_input_embeddings()
    return embedding


def open_clip_encoder(
    model: open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa,
    *,
    preprocess: Callable[[Image], Tensor],
    tokenize: Tokenize,
    settings: ModelSettings | None = None,
    caption_tokenizer: Callable[[], CaptionTokenizer | None] = lambda: None,
) -> DualEncoder:
    """The dual encoder of an open_clip model that is already built."""
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    text = getattr(model, "text", model)
    embedding = _token_embedding(model)
    interface = DualEncoderInterface(
        encode_images=partial(model.encode_image, normalize=False),
        encode_texts=partial(model.encode_text, normalize=False),
        preprocess=preprocess,
        tokenize=tokenize,
        token_embedding=embedding,
        logit_scale=model.logit_scale,
        image_shape=(3, height, width),
        context_length=model.context_length,
        causal_text=_causal_text(text),
        settings=settings,
        caption_tokenizer=caption_tokenizer,
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


def _check_weights(name: str, weights: str | None) -> Mapping[str, object] | None:
    """The settings of a pretrained tag; None for a file.

    Raises:
        MissingModel: open_clip knows no such model or tag, and there is no such file.
        InvalidModel: The file's name is not that of a checkpoint.
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
    config: Mapping[str, object] = open_clip.get_pretrained_cfg(name, weights)
    if config:
        return config
    if not Path(weights).is_file():
        if Path(weights).name != weights or Path(weights).suffix in SUFFIXES:
            raise MissingModel(f"the file {weights} with the weights of {name} does not exist")
        raise MissingModel(
            f"weights {weights!r} of {name} are neither a file nor a pretrained tag{_tags(name)}"
        )
    if Path(weights).suffix not in SUFFIXES:
        raise InvalidModel(f"the checkpoint {weights} must end in one of {', '.join(SUFFIXES)}")
    return None


def _tags(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    return f"; its tags are {', '.join(tags)}" if tags else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
