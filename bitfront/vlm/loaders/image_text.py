"""transformers' models that write text about pictures, of any architecture that it registers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoProcessor, GenerationConfig, ProcessorMixin

from bitfront.errors import InvalidModel, SpecError
from bitfront.layers import Tower
from bitfront.vlm.loaders.explained import explained
from bitfront.vlm.loaders.probe import CAPTION, check_tokens, picture, refuse_empty
from bitfront.vlm.loaders.prompts import check_length, check_places, tokenizer_json
from bitfront.vlm.loaders.settings import config_settings, processor_settings, tokenizer_digest
from bitfront.vlm.models.generative import (
    IMAGE_TOKEN,
    GenerativeInterface,
    Prompt,
    QuestionBatch,
)
from bitfront.vlm.models.settings import ModelSettings
from bitfront.vlm.models.whole import NO_PARTS, Generating, WholeInterface, WholeModel

# Inputs with a value for each token, and that of a token that the model writes.
_TOKEN_TYPES: Final[Mapping[str, int]] = {"mm_token_type_ids": 0, "token_type_ids": 0}
# PaliGemma sees all of a prompt at once, and what it writes one after the other.
_WRITTEN_TYPES: Final[Mapping[str, Mapping[str, int]]] = {"paligemma": {"token_type_ids": 1}}
_OTHER: Final = frozenset({"input_ids", "attention_mask", "pixel_values", "labels"})
# What modules between a vision tower and a decoder are called that lie within the tower.
_MERGERS: Final = ("merger", "projector", "connector")
# What stands around a picture's token in Qwen's prompts, where its tokenizer has it.
_AROUND: Final = ("<|vision_start|>", "<|vision_end|>")


def image_text_model(name: str, place: str, model: Generating, ends: frozenset[int]) -> WholeModel:
    """The generative model of any library model that is already built.

    Args:
        name: What the job calls it.
        place: Folder or hub name of its processor.
        model: The model.
        ends: The tokens that end its answers.

    Raises:
        MissingModel: The processor or its tokenizer cannot be found.
        InvalidModel: It cannot be used, does not fit the model, or it is not known which
            modules read pictures and text.
    """
    with explained("transformers", f"get the processor of {place!r} from it or the hub's cache"):
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # theirs
            place, trust_remote_code=False
        )
    is_whole = isinstance(processor, ProcessorMixin) and hasattr(processor, "image_processor")
    if not is_whole or getattr(processor, "image_token", None) is None:
        raise InvalidModel(
            f"{name} has a {type(processor).__name__}, which puts no pictures into a text: copy "
            "processor_config.json from where the weights came from"
        )
    refuse_empty(name, processor.tokenizer)
    # What a checkpoint says of sampling and repetition is no part of a greedy answer.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # theirs
    words = _words(name, processor, model, ends)
    prompt = words.prepare(f"{IMAGE_TOKEN}\n{CAPTION}", picture())
    _check_picture(name, model, prompt)
    sample = QuestionBatch.of([prompt], torch.tensor([[min(ends)]]))
    types = {**_TOKEN_TYPES, **_WRITTEN_TYPES.get(model.config.model_type, {})}
    parts = _parts(name, model)
    with explained("transformers", f"run {name}"):
        return WholeModel(
            model, WholeInterface(words=words, token_types=types, parts=parts, sample=sample)
        )


def _words(
    name: str, processor: ProcessorMixin, model: Generating, ends: frozenset[int]
) -> GenerativeInterface:
    tokenizer = processor.tokenizer
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    accepted = inspect.signature(model.forward).parameters
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0)) or 1 << 20
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends)
    picture_text = _picture_text(processor)

    def prepare(text: str, image: Image | None) -> Prompt:
        check_places(text, image)
        with explained("transformers", f"prepare a question for {name}"):
            if image is None:
                given = tokenizer(text, return_tensors="pt")
            else:
                text = text.replace(IMAGE_TOKEN, picture_text)
                given = processor(images=image.convert("RGB"), text=text, return_tensors="pt")
        check_tokens(name, [text], given["input_ids"], rows)
        tokens = given["input_ids"][0]
        check_length(text, tokens, most)
        if image is None:
            return Prompt(tokens)
        further = {
            key: value
            for key, value in given.items()
            if key in accepted and key not in _OTHER and isinstance(value, Tensor)
        }
        return Prompt(tokens, given["pixel_values"], further=further)

    def encode_answer(answer: str) -> Tensor:
        codes = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*codes, end])

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    further: dict[str, object] = {
        key: value
        for key, value in vars(processor).items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    further["ends"] = sorted(ends)
    settings = ModelSettings(
        tokenizer_digest(tokenizer),
        processor_settings(processor.image_processor, further),
        config_settings(model.config),
    )
    return GenerativeInterface(
        runs={},
        token_embedding=cast("nn.Embedding", model.get_input_embeddings()),
        image_features=_no_parts,
        image_vectors=_no_parts,
        logits=_no_parts,
        continue_from=_no_parts,
        prepare=prepare,
        encode_answer=encode_answer,
        decode=decode,
        ends=ends,
        image_code=model.config.image_token_id,
        tile_shape=(0, 0),
        max_length=most,
        settings=settings,
        tokenizer_json=tokenizer_json(tokenizer),
    )


def _picture_text(processor: ProcessorMixin) -> str:
    """What stands for a picture in a text, as the processor reads it."""
    image_token = str(getattr(processor, "image_token", ""))
    vocabulary = processor.tokenizer.get_vocab()
    if image_token == "<|image_pad|>" and vocabulary.keys() >= set(_AROUND):
        return image_token.join(_AROUND)
    return image_token


def _check_picture(name: str, model: Generating, prompt: Prompt) -> None:
    """Refuses a processor that puts no picture into a prompt.

    Raises:
        InvalidModel: It does not.
    """
    code = model.config.image_token_id
    if not (prompt.tokens == code).any():
        raise InvalidModel(
            f"the processor of {name} puts no token {code} into a prompt, which config.json "
            "names as image_token_id: they are of different models"
        )


def _parts(name: str, model: Generating) -> dict[nn.Module, Tower]:
    """The modules that hold a tower; all others are the projector's.

    Raises:
        InvalidModel: It is not known which module reads pictures, or which writes text.
    """
    vision = model.get_encoder(modality="image")
    language = model.get_decoder()  # type: ignore[no-untyped-call]  # theirs
    inner = {id(model), id(model.base_model)}
    if id(vision) in inner or id(language) in inner:
        raise InvalidModel(
            f"{name} is a {type(model).__name__}, of which it is not known which module "
            f"{'reads pictures' if id(vision) in inner else 'writes text'}: its layers have no "
            "towers to be searched in"
        )
    parts = {vision: Tower.VISION, language: Tower.LANGUAGE}
    head = model.get_output_embeddings()
    for part in (head, model.get_input_embeddings()):
        if part is not None:
            parts[part] = Tower.LANGUAGE
    for path, module in vision.named_modules():
        parent, _, last = path.rpartition(".")
        if any(
            word in (parent.rpartition(".")[2] if last.isdigit() else last) for word in _MERGERS
        ):
            parts[module] = Tower.PROJECTOR
    return parts


def _no_parts(*_given: object) -> NoReturn:
    raise SpecError(f"this {NO_PARTS}")
