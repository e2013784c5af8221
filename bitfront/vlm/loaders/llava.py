"""transformers' LLaVA and LLaVA-NeXT, from a folder or the hub, weights in safetensors only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextProcessor,
    LlavaProcessor,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from bitfront.errors import InvalidModel, SpecError
from bitfront.layers import Tower
from bitfront.vlm.loaders.explained import explained
from bitfront.vlm.loaders.probe import CAPTION, check_tokens, picture, refuse_empty
from bitfront.vlm.loaders.prompts import check_length, check_places, tokenizer_json
from bitfront.vlm.loaders.settings import (
    config_settings,
    processor_settings,
    tokenizer_digest,
)
from bitfront.vlm.models.generative import IMAGE_TOKEN, GenerativeInterface, GenerativeModel, Prompt
from bitfront.vlm.models.settings import ModelSettings
from bitfront.vlm.models.stored_weights import StoredWeights

Llava = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
Inner = LlavaModel | LlavaNextModel
LLAVA_KINDS: dict[str, type[Llava]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
}

# Text beside the image in the sample that positions are counted on.
_TEXT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """How a model's words become tokens, and tokens words.

    Attributes:
        prepare: A question's text and its picture to a prompt.
        encode_answer: An answer's tokens with the end after them.
        decode: Tokens to text, without the end.
        settings: What these depend on; None where that is fixed.
        tokenizer_json: The tokenizer as the package tokenizers writes it; None where words are
            made in another way.
    """

    prepare: Callable[[str, Image | None], Prompt]
    encode_answer: Callable[[str], Tensor]
    decode: Callable[[Sequence[int]], str]
    settings: ModelSettings | None = None
    tokenizer_json: str | None = None


def load_text_processor(
    place: str, ends: frozenset[int], model: Llava | None = None
) -> TextProcessor:
    """The words of a stored model, as its processor knows them.

    Args:
        place: Folder or hub name.
        ends: The tokens that end its answers; the tokenizer's own is taken where it is one.
        model: The model itself: what the processor's files leave open follows from it.

    Raises:
        MissingModel: The processor or its tokenizer cannot be found.
        InvalidModel: It cannot be used, or gives tokens that the model does not know.
    """
    with explained("transformers", f"get the processor of {place!r} from it or the hub's cache"):
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # theirs
            place, trust_remote_code=False
        )
        given, _ = type(processor).get_processor_dict(place)
    if not isinstance(processor, LlavaProcessor | LlavaNextProcessor):
        raise InvalidModel(
            f"{place} has a {type(processor).__name__}, not the processor of a LLaVA: copy "
            "processor_config.json from where the weights came from"
        )
    tokenizer = processor.tokenizer
    refuse_empty(place, tokenizer)
    rows = None
    if model is not None:
        _complete(processor, given, model)
        rows = len(model.get_input_embeddings().get_parameter("weight"))
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends)

    def prepare(text: str, image: Image | None) -> Prompt:
        with explained("transformers", f"prepare a question for {place}"):
            if image is None:
                given = tokenizer(text, return_tensors="pt")
            else:
                given = processor(images=image.convert("RGB"), text=text, return_tensors="pt")
        if rows is not None:
            check_tokens(place, [text], given["input_ids"], rows)
        if image is None:
            return Prompt(given["input_ids"][0])
        size = given.get("image_sizes")
        return Prompt(
            given["input_ids"][0],
            given["pixel_values"][0],
            None if size is None else (int(size[0][0]), int(size[0][1])),
        )

    def encode_answer(answer: str) -> Tensor:
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*tokens, end])

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    further = {
        "patch_size": processor.patch_size,
        "num_additional_image_tokens": processor.num_additional_image_tokens,
        "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        "image_token": str(processor.image_token),
        "ends": sorted(ends),
    }
    settings = ModelSettings(
        tokenizer_digest(tokenizer),
        processor_settings(processor.image_processor, further),
        "" if model is None else config_settings(model.config),
    )
    return TextProcessor(prepare, encode_answer, decode, settings, tokenizer_json(tokenizer))


def _complete(
    processor: LlavaProcessor | LlavaNextProcessor, given: Mapping[str, object], model: Llava
) -> None:
    """Takes from the model what its processor's files do not say."""
    config, embeddings = model.config, model.model.vision_tower.embeddings
    if processor.patch_size is None:
        processor.patch_size = embeddings.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if given.get("num_additional_image_tokens") is None:
        processor.num_additional_image_tokens = embeddings.num_positions - embeddings.num_patches


@torch.no_grad()
def check_prompt(name: str, model: Llava, loaded: GenerativeModel) -> None:
    """Refuses a LLaVA whose processor does not fit its vision tower.

    Raises:
        InvalidModel: Images have another size, or prompts another number of image tokens, than
            the model's.
    """
    text = f"USER: {IMAGE_TOKEN}\n{CAPTION} ASSISTANT:"
    prompt = loaded.prepare(text, picture())
    assert prompt.pixels is not None
    inner, side = model.model, model.model.vision_tower.embeddings.image_size
    if tuple(prompt.pixels.shape[-2:]) != (side, side):
        height, width = prompt.pixels.shape[-2:]
        raise InvalidModel(
            f"the preprocessing of {name} makes images of {height} x {width}, but its vision tower "
            f"reads {side} x {side}: its preprocessing is of another model"
        )
    sizes = None if prompt.size is None else torch.tensor([prompt.size])
    pixels = prompt.pixels[None].to(model.device, model.dtype)
    vectors = _image_vectors(inner, _image_features(inner, pixels, sizes), sizes)
    if not vectors.isfinite().all():
        raise InvalidModel(f"the image features of {name} are not finite: its weights are damaged")
    places = int((prompt.tokens == model.config.image_token_id).sum())
    if places == 0:
        raise InvalidModel(
            f"the processor of {name} puts no token {model.config.image_token_id} into a prompt, "
            "which config.json names as image_token_id: they are of different models"
        )
    if len(vectors) != places:
        raise InvalidModel(
            f"the processor of {name} gives an image {places} tokens, but the model makes "
            f"{len(vectors)} of it: correct patch_size, num_additional_image_tokens and "
            "vision_feature_select_strategy in its processor_config.json and config.json"
        )


def llava_model(
    model: Llava,
    processor_texts: TextProcessor,
    ends: frozenset[int],
    stored: StoredWeights | None = None,
) -> GenerativeModel:
    """The generative model of a LLaVA that is already built; `stored` as for `LayeredModel`.

    What its features never pass is dropped: the vision tower's last layers after
    `vision_feature_layer`, and SigLIP's pooling head.
    """
    _drop_unused(model)
    config, inner = model.config, model.model
    device, dtype = model.device, model.dtype
    embeddings = inner.vision_tower.embeddings
    shape = (1, embeddings.patch_embedding.in_channels, *[embeddings.image_size] * 2)
    # Not config.image_seq_length, which nothing holds against the vision tower.
    image_tokens = _tile_tokens(inner)
    length = image_tokens + _TEXT_TOKENS
    most = int(config.get_text_config().max_position_embeddings)

    def run_vision() -> None:
        inner.vision_tower(torch.zeros(shape, device=device, dtype=dtype))

    def run_projector() -> None:
        width = inner.multi_modal_projector.linear_1.in_features
        tokens = torch.zeros(1, image_tokens, width, device=device, dtype=dtype)
        inner.multi_modal_projector(tokens)

    def run_language() -> None:
        tokens = torch.zeros(1, length, dtype=torch.long, device=device)
        # Without a mask transformers looks into the positions' values, which meta tensors lack.
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
        given = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
        model.lm_head(inner.language_model(**given)[0])

    def logits(embedded: Tensor, kept: int) -> Tensor:
        found = model(inputs_embeds=embedded, logits_to_keep=kept, use_cache=False)
        result: Tensor = found.logits
        return result

    def continue_from(embedded: Tensor, state: object) -> tuple[Tensor, object]:
        found = model(
            inputs_embeds=embedded, past_key_values=state, logits_to_keep=1, use_cache=True
        )
        return found.logits[:, -1], found.past_key_values

    def prepare(text: str, image: Image | None) -> Prompt:
        check_places(text, image)
        prompt = processor_texts.prepare(text, image)
        check_length(text, prompt.tokens, most)
        return prompt

    interface = GenerativeInterface(
        runs={
            Tower.VISION: run_vision,
            Tower.PROJECTOR: run_projector,
            Tower.LANGUAGE: run_language,
        },
        token_embedding=inner.get_input_embeddings(),
        image_features=partial(_image_features, inner),
        image_vectors=partial(_image_vectors, inner),
        logits=logits,
        continue_from=continue_from,
        prepare=prepare,
        encode_answer=processor_texts.encode_answer,
        decode=processor_texts.decode,
        ends=ends,
        image_code=config.image_token_id,
        tile_shape=(image_tokens, inner.multi_modal_projector.linear_2.out_features),
        max_length=most,
        settings=processor_texts.settings,
        tokenizer_json=processor_texts.tokenizer_json,
    )
    return GenerativeModel(model, interface, stored)


def _tile_tokens(inner: Inner) -> int:
    """Tokens that the vision tower gives for a tile: the default strategy drops the first one."""
    positions: int = inner.vision_tower.embeddings.num_positions
    return positions - (inner.config.vision_feature_select_strategy == "default")


def _image_features(inner: Inner, pixels: Tensor, sizes: Tensor | None) -> Tensor:
    """The projector's output; what the model would make of it is thrown away.

    Other batches may be under way in the same model, and see their outputs first.
    """
    seen: list[Tensor] = []
    hook = inner.multi_modal_projector.register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    try:
        if isinstance(inner, LlavaNextModel):
            inner.get_image_features(pixels, sizes)
        else:
            inner.get_image_features(pixels)
    finally:
        hook.remove()
    return seen[-1]


def _image_vectors(inner: Inner, features: Tensor, sizes: Tensor | None) -> Tensor:
    """The features as the decoder reads them: LLaVA-NeXT puts an image's tiles together.

    Raises:
        SpecError: The tiles are not those of images of these sizes.
    """
    if not isinstance(inner, LlavaNextModel):
        return features.flatten(0, 1)
    config = inner.config
    side = inner.vision_tower.embeddings.image_size
    images = [] if sizes is None else sizes.tolist()
    tiles = [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in images]
    if sum(tiles) != len(features):
        raise SpecError(
            f"the image features are of {len(features)} tiles, "
            f"but images of these sizes have {sum(tiles)}"
        )
    packed, _ = inner.pack_image_features(  # type: ignore[no-untyped-call]  # theirs
        torch.split(features, tiles),
        images,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_newline=inner.image_newline,
    )
    return torch.cat(packed)


def _drop_unused(model: Llava) -> None:
    """Drops the vision tower's parts after the hidden states that are used.

    Raises:
        InvalidModel: The vision tower is built in a way that is not known, or has fewer
            layers than the model wants features of.
    """
    tower, config = model.model.vision_tower, model.config
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    if layers is None:
        raise InvalidModel(
            f"the vision tower {type(tower).__name__} has no encoder.layers: "
            "it must be a CLIP or a SigLIP"
        )
    # Hidden state 0 is the embedding; negative numbers count from the last layer's.
    chosen = config.vision_feature_layer
    several = [chosen] if isinstance(chosen, int) else list(chosen)
    states = [state if state >= 0 else len(layers) + 1 + state for state in several]
    if not all(0 <= state <= len(layers) for state in states):
        raise InvalidModel(
            f"vision_feature_layer is {chosen}, but the vision tower has {len(layers)} layers: "
            "correct it in the model's config.json"
        )
    del layers[max(states) :]
    tower.config.num_hidden_layers = len(layers)
    config.vision_feature_layer = states[0] if isinstance(chosen, int) else states
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head
