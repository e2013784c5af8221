"""Loads a packed checkpoint; its weights stay packed in memory and are unpacked layer by layer.

This file travels with the checkpoint. It needs torch and safetensors, and Pillow for pictures;
`architecture.py` beside it builds the modules, and `card.json` says what is in the folder.

    model = load("model/")
    model.classify(picture)
    # or, for a generative model
    model.answer(picture, question)
    # or, for a model that finds pictures by captions
    model.similarity(model.image_features(pictures), model.text_features(captions))
"""

import hashlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FORMAT = "bitfront.packed.1"
CARD, WEIGHTS, CLASSES = "card.json", "model.safetensors", "classes.safetensors"

_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-24, 65504.0  # float16's positive numbers


class DamagedArtefact(ValueError):
    """A file of the folder is missing, or is not the one that was written."""


def load(folder: str | Path, device: str = "cpu", *, unpack: bool = False) -> "Encoder | Answerer":
    """The model in a folder: a `Classifier`, another `Encoder`, or an `Answerer`.

    Args:
        folder: What `bitfront build` wrote.
        device: Where torch runs it.
        unpack: Unpack every weight now: faster, but in memory the model is as large as a
            model that is not quantized.

    Raises:
        DamagedArtefact: A file is missing, or its digest is not the one on the card.
    """
    folder = Path(folder)
    card = read_card(folder)
    check_files(folder, card)
    module = _module(folder / "architecture.py")
    architecture = module.build(card["architecture"]["config"], folder)
    tensors = load_file(folder / WEIGHTS)
    dtype = getattr(torch, card["dtype"])
    used = fill(architecture.module, card, tensors, dtype, unpack=unpack)
    architecture.module.to(device).eval().requires_grad_(requires_grad=False)
    recovery = {name: tensors[name].to(device) for name in tensors.keys() - used}
    adapter = None
    if card["adapter"] is not None:
        adapter = Adapter(recovery, card["adapter"])
    if card["task"] == "classification":
        features = load_file(folder / CLASSES)["features"].to(device)
        return Classifier(card, architecture, features, adapter)
    if card["task"] == "retrieval":
        return Encoder(card, architecture, adapter)
    return Answerer(card, architecture, recovery.get("context"), adapter)


def read_card(folder: Path) -> dict[str, Any]:
    """What `card.json` of a folder says.

    Raises:
        DamagedArtefact: There is none, or it is of another format.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedArtefact(f"{folder} holds no readable {CARD}: {error}") from error
    if card.get("format") != FORMAT:
        raise DamagedArtefact(
            f"{folder / CARD} is of the format {card.get('format')!r}, not {FORMAT}"
        )
    return card


def check_files(folder: Path, card: dict[str, Any]) -> None:
    """Compares every file with its digest on the card.

    Raises:
        DamagedArtefact: One is missing or differs.
    """
    for name, known in card["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedArtefact(f"{path} is missing: build the artefact again")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != known["sha256"]:
            raise DamagedArtefact(
                f"{path} is damaged, its digest is not the one in {CARD}: build the artefact again"
            )


class PackedWeight(nn.Module):
    """A weight as it is stored: codes as a dense stream of bits, scales and zero points.

    Code `i` takes the bits from `bits * i` on, least significant first. A weight is
    `scale * (code - zero * 2**(bits - 8))`; without zero points, zero is the middle code. With
    levels it is `scale * tensor_scale * levels[code]`.

    Args:
        tensors: `codes`, `scale` and perhaps `zero` or `tensor_scale`; or `weight`, in 16 bits.
        shape: Of the weight; all dimensions but the first are columns.
        bits: Width of a code.
        group: Columns that share a scale, 0 for a whole row.
        dtype: Of the unpacked weight.
        levels: `(2**bits,)`, what each code stands for; None for whole numbers.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        shape: tuple[int, ...],
        bits: int,
        group: int,
        dtype: torch.dtype,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        self.shape, self.bits, self.group, self.dtype = shape, bits, group, dtype
        for name in ("weight", "codes", "scale", "zero", "tensor_scale"):
            self.register_buffer(name, tensors.get(name))

    def forward(self) -> Tensor:
        """The weight, in its shape and dtype."""
        stored: dict[str, Tensor] = dict(self.named_buffers())
        if "weight" in stored:
            return saturated(stored["weight"].float(), self.dtype).view(self.shape)
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        codes = unpack_codes(stored["codes"], self.bits, rows * columns)
        weight = self._levels(codes.view(rows, columns), slice(None))
        return saturated(weight, self.dtype).view(self.shape)

    def rows(self, places: Tensor) -> Tensor:
        """Some rows, as an embedding looks them up; only they are unpacked where rows are bytes."""
        stored: dict[str, Tensor] = dict(self.named_buffers())
        if "weight" in stored:
            return saturated(stored["weight"][places].float(), self.dtype)
        row_bits = self.shape[1] * self.bits
        if row_bits % 8:
            return functional.embedding(places, self())
        chosen, back = torch.unique(places, return_inverse=True)
        packed = stored["codes"].view(self.shape[0], row_bits // 8)[chosen].flatten()
        codes = unpack_codes(packed, self.bits, len(chosen) * self.shape[1])
        weight = self._levels(codes.view(len(chosen), self.shape[1]), chosen)
        return saturated(weight, self.dtype)[back]

    def _levels(self, codes: Tensor, rows: slice | Tensor) -> Tensor:
        stored: dict[str, Tensor] = dict(self.named_buffers())
        scale = stored["scale"].float()[rows] * stored.get("tensor_scale", 1.0)
        points = codes.float() if "levels" not in stored else stored["levels"][codes.int()]
        if "levels" in stored:
            zero = torch.zeros_like(scale)
        elif "zero" in stored:
            zero = stored["zero"][rows].float() / 2 ** (8 - self.bits)
        else:
            zero = torch.full_like(scale, 2 ** (self.bits - 1))
        if self.group:
            columns = codes.shape[1]
            scale, zero = (
                part.repeat_interleave(self.group, dim=1)[:, :columns] for part in (scale, zero)
            )
        return points.sub_(zero).mul_(scale)


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes `(count,)` uint8 of a stream of bits."""
    if bits == 8:
        return packed[:count]
    mask = 2**bits - 1
    if 8 % bits == 0:
        parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).flatten()[:count]
    rows = functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).long()
    word = rows[:, 0].clone()
    for byte in range(1, bits):
        word |= rows[:, byte] << (8 * byte)
    parts = [((word >> (bits * place)) & mask).to(torch.uint8) for place in range(8)]
    return torch.stack(parts, dim=-1).flatten()[:count]


class InputRounding:
    """Rounds a layer's input to its levels, before the layer multiplies it.

    Args:
        bits: Width of a code.
        form: A static scale and zero point; None takes the range of each token, or for a
            convolution of each sample.
        group: Columns of a token that share a scale around zero; 0 for none.
        kernel: Height and width of a convolution's patches; None for another layer.
        is_symmetric: Whether the range of each token lies around zero.
    """

    def __init__(
        self,
        bits: int,
        form: tuple[Tensor, Tensor] | None,
        group: int = 0,
        kernel: tuple[int, int] | None = None,
        *,
        is_symmetric: bool = False,
    ) -> None:
        self._top = 2**bits - 1
        self._largest = 2 ** (bits - 1) - 1
        self._group = group
        self._form = None if form is None else (form[0].float(), form[1].float())
        self._kernel = kernel
        self._is_symmetric = is_symmetric

    def __call__(self, inputs: Tensor) -> Tensor:
        """The input on its levels, in its dtype."""
        if self._form is not None:
            scale, zero = (part.to(inputs.device) for part in self._form)
            return self._round(inputs, scale, zero)
        if self._group:
            return self._patches_in_groups(inputs) if self._kernel else self._in_groups(inputs)
        if self._is_symmetric:
            return self._by_token(inputs)
        rows = inputs.flatten(1) if self._kernel else inputs
        low, high = torch.aminmax(rows.float(), dim=-1, keepdim=True)
        return self._round(rows, *self._grid(low, high)).view_as(inputs)

    def hook(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook."""
        return (self(args[0]), *args[1:])

    def _round(self, inputs: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        multiples = (inputs.float() / scale).round_().clamp_(-zero, self._top - zero)
        return saturated(multiples.mul_(scale), inputs.dtype)

    def _by_token(self, inputs: Tensor) -> Tensor:
        values = inputs.float()
        scale = values.abs().amax(dim=-1, keepdim=True) / (self._top / 2)
        scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        codes = (values / scale).clamp_(-self._largest - 1, self._largest).round_()
        return saturated(codes.mul_(scale), inputs.dtype)

    def _in_groups(self, inputs: Tensor) -> Tensor:
        columns = inputs.shape[-1]
        filled = functional.pad(inputs.float(), (0, -columns % self._group))
        groups = filled.view(*filled.shape[:-1], -1, self._group)
        largest = groups.abs().amax(dim=-1, keepdim=True)
        multiple = torch.where(largest > 0, self._largest / largest, 0.0)
        levels = (groups * multiple).round_().mul_(largest / self._largest)
        return saturated(levels.flatten(-2)[..., :columns], inputs.dtype)

    def _patches_in_groups(self, inputs: Tensor) -> Tensor:
        """Pictures `(n, channels, h, w)`; what lies beside the last whole patches is cut off."""
        height, width = self._kernel or (1, 1)
        down, across = inputs.shape[2] // height, inputs.shape[3] // width
        seen = inputs[:, :, : down * height, : across * width]
        patches = seen.reshape(len(seen), -1, down, height, across, width)
        patches = patches.permute(0, 2, 4, 1, 3, 5)
        rounded = self._in_groups(patches.flatten(3)).view_as(patches)
        return rounded.permute(0, 3, 1, 4, 2, 5).reshape(seen.shape)

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest float16 scale that covers a range with zero in it, and zero's code."""
        limit = _LARGEST_SCALE * self._top
        down, up = -low.clamp(-limit, 0), high.clamp(0, limit)
        span = (down + up) / self._top
        wanted = span.clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
        half = wanted.half()
        following = (half.view(torch.int16) + 1).view(torch.float16)
        scale = torch.where(half.float() < wanted, following, half).float()
        return scale, (down / torch.maximum(scale, span)).round()


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another dtype, at most its largest finite number."""
    limits = torch.finfo(dtype)
    if limits.max < torch.finfo(values.dtype).max:
        values = values.clamp(limits.min, limits.max)
    return values.to(dtype)


class _Packed:
    """What a module becomes whose weight is packed."""

    packed: PackedWeight

    @property
    def weight(self) -> Tensor:
        """The weight, unpacked anew each time."""
        weight: Tensor = self.packed()
        return weight


class _PackedEmbedding(_Packed):
    def forward(self, tokens: Tensor) -> Tensor:
        """The embedded tokens."""
        return self.packed.rows(tokens)


def fill(
    module: nn.Module,
    card: dict[str, Any],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    *,
    unpack: bool,
) -> set[str]:
    """Gives a module its weights, and its layers their input rounding.

    Returns:
        The names of the tensors that it took.
    """
    used: set[str] = set()
    levels = {
        name: torch.tensor([0.0 if level is None else level for level in known])
        for name, known in card.get("formats", {}).items()
    }
    for name, layer in card["layers"].items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensors[key] for key in layer["tensors"]}
        used.update(layer["tensors"])
        shape = tuple(layer["shape"])
        form = levels.get(layer.get("format", ""))
        packed = PackedWeight(own, shape, layer["weight_bits"], layer["group"], dtype, form)
        for path in layer["modules"]:
            target = module.get_submodule(path)
            _give_weight(target, packed, unpack=unpack)
            if layer["activation_bits"] < 16 and not isinstance(target, nn.Embedding):
                _round_inputs(target, layer, own)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = {**parameters, **dict(module.named_buffers())}
    for name in card["kept"]:
        used.add(name)
        values = tensors[name]
        if name in parameters:
            place = saturated(values.float(), dtype).view(state[name].shape)
            parameters[name].data = place
        else:
            state[name].copy_(values)
    return used


def _give_weight(module: nn.Module, packed: PackedWeight, *, unpack: bool) -> None:
    if unpack:
        module.weight = nn.Parameter(packed(), requires_grad=False)
        return
    kind = type(module)
    base = _PackedEmbedding if isinstance(module, nn.Embedding) else _Packed
    del module.weight
    module.packed = packed
    module.__class__ = type(kind.__name__, (base, kind), {})


def _round_inputs(module: nn.Module, layer: dict[str, Any], own: dict[str, Tensor]) -> None:
    form = (own["input_scale"], own["input_zero"]) if "input_scale" in own else None
    shape = layer["shape"]
    kernel = (shape[2], shape[3]) if isinstance(module, nn.Conv2d) else None
    rounding = InputRounding(
        layer["activation_bits"],
        form,
        layer["activation_group"],
        kernel,
        is_symmetric=layer["activation_symmetric"],
    )
    module.register_forward_pre_hook(rounding.hook)


class Adapter:
    """The low-bit bottleneck after the image features."""

    def __init__(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
        self._blend: float = settings["blend"]
        self._is_residual: bool = settings["residual"]
        bits, shapes = settings["bits"], settings["shapes"]
        self._products = {}
        for name in ("down", "up"):
            prefix = f"adapter.{name}."
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            packed = PackedWeight(own, tuple(shapes[name]), bits, 0, torch.float32)
            form = (own["input_scale"], own["input_zero"]) if "input_scale" in own else None
            group, is_symmetric = settings["activation_group"], settings["activation_symmetric"]
            rounding = None
            if bits < 16:
                rounding = InputRounding(bits, form, group, is_symmetric=is_symmetric)
            self._products[name] = (packed, own["bias"].float(), rounding)

    def __call__(self, features: Tensor) -> Tensor:
        """The features after the adapter, not normalised."""
        root = math.sqrt(features.shape[-1])
        unit = functional.normalize(features, dim=-1) * root
        changed = self._blend * self._product("up", functional.relu(self._product("down", unit)))
        if not self._is_residual:
            return changed + (1 - self._blend) * unit
        length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        return features + length / root * changed

    def _product(self, name: str, inputs: Tensor) -> Tensor:
        packed, bias, rounding = self._products[name]
        return functional.linear(inputs if rounding is None else rounding(inputs), packed(), bias)


class Encoder:
    """A dual encoder, which compares pictures with captions.

    Attributes:
        card: What `card.json` says.
        architecture: The modules, with their preprocessing and their words.
    """

    def __init__(
        self,
        card: dict[str, Any],
        architecture: Any,  # noqa: ANN401  # the module beside this one
        adapter: Adapter | None = None,
    ) -> None:
        self.card = card
        self.architecture = architecture
        self._adapter = adapter

    def image_features(self, pictures: Any) -> Tensor:  # noqa: ANN401  # Pillow's
        """The features `(n, d)`, float32 of length 1, of a Pillow picture or a list of them."""
        several = pictures if isinstance(pictures, list | tuple) else [pictures]
        pixels = torch.stack([self.preprocess(picture) for picture in several])
        return functional.normalize(self.encode_images(pixels).float(), dim=-1)

    def text_features(self, captions: str | list[str]) -> Tensor:
        """The features `(n, d)`, float32 of length 1, of a caption or a list of them.

        Raises:
            ValueError: A word is not known, or a caption is too long.
        """
        several = [captions] if isinstance(captions, str) else captions
        return functional.normalize(self.encode_texts(several).float(), dim=-1)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """The cosines `(images, texts)` of features of length 1."""
        return images @ texts.T

    def preprocess(self, picture: Any) -> Tensor:  # noqa: ANN401  # Pillow's
        """The picture `(c, h, w)` as the model takes it."""
        pixels: Tensor = self.architecture.preprocess(picture)
        return pixels

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """The image features `(n, d)` of pixels `(n, c, h, w)`, after any adapter."""
        features: Tensor = self.architecture.encode_images(pixels.to(self._device))
        return features if self._adapter is None else self._adapter(features.float())

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """The text features `(n, d)` of captions, without a learned prompt."""
        tokens = self.architecture.tokenize(texts).to(self._device)
        features: Tensor = self.architecture.encode_texts(tokens)
        return features

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.architecture.module.logit_scale.device
        return device


class Classifier(Encoder):
    """A dual encoder that tells the classes of its card apart.

    Attributes:
        classes: The names of the classes.
        class_features: `(classes, d)`, of length 1.
    """

    def __init__(
        self,
        card: dict[str, Any],
        architecture: Any,  # noqa: ANN401  # the module beside this one
        class_features: Tensor,
        adapter: Adapter | None,
    ) -> None:
        super().__init__(card, architecture, adapter)
        self.classes: list[str] = card["classes"]
        self.class_features = class_features

    @torch.no_grad()
    def classify(self, picture: Any, top: int = 3) -> list[tuple[str, float]]:  # noqa: ANN401  # Pillow's
        """The `top` most likely classes of a Pillow picture with their shares, the best first."""
        shares = self.logits(self.preprocess(picture)[None])[0].softmax(dim=-1)
        best = shares.topk(min(top, len(self.classes)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.classes[place], share) for place, share in found]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """The scaled cosines `(n, classes)` of pixels `(n, c, h, w)` with every class."""
        images = functional.normalize(self.encode_images(pixels).float(), dim=-1)
        scale = float(self.architecture.module.logit_scale.float().exp())
        return scale * images @ self.class_features.T


class Answerer:
    """A generative model that answers questions about pictures.

    Attributes:
        card: What `card.json` says.
    """

    def __init__(
        self,
        card: dict[str, Any],
        architecture: Any,  # noqa: ANN401  # the module beside this one
        context: Tensor | None,
        adapter: Adapter | None,
    ) -> None:
        self.card = card
        self.architecture = architecture
        self._context = None if context is None else context.float()
        self._adapter = adapter

    @torch.no_grad()
    def answer(self, picture: Any, question: str) -> str:  # noqa: ANN401  # Pillow's
        """The greedy answer to a question about a Pillow picture; None asks without a picture."""
        template: str = self.card["prompt"]
        if picture is None:
            token = self.card["image_token"]
            template = template.replace(f"{token}\n", "").replace(token, "").strip()
        tokens, pixels, size = self.architecture.prepare(template.replace("{}", question), picture)
        sizes = None if size is None else torch.tensor([size])
        given = None if pixels is None else pixels[None]
        (written,) = self.generate(tokens[None], given, sizes, self.card["answer_tokens"])
        ends = self.architecture.ends
        end = next((n for n, token in enumerate(written) if token in ends), None)
        text: str = self.architecture.decode(written[:end])
        return text

    @torch.no_grad()
    def logits(
        self, tokens: Tensor, pixels: Tensor | None, sizes: Tensor | None, kept: int
    ) -> Tensor:
        """The logits `(n, kept, vocabulary)` after the last `kept` of the tokens `(n, length)`."""
        embedded = self._embedded(tokens, pixels, sizes)
        logits: Tensor = self.architecture.logits(embedded, kept)
        return logits

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, pixels: Tensor | None, sizes: Tensor | None, limit: int
    ) -> list[list[int]]:
        """Greedy tokens of each row up to its end, at most `limit`, after prompts of one length."""
        embedded, state = self._embedded(tokens, pixels, sizes), None
        written: list[list[int]] = [[] for _ in range(len(tokens))]
        ended = [False] * len(tokens)
        for _ in range(limit):
            logits, state = self.architecture.continue_from(embedded, state)
            chosen = logits.argmax(dim=-1)
            for row, token in enumerate(chosen.tolist()):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in self.architecture.ends
            if all(ended):
                break
            embedded = self.architecture.embed(chosen[:, None])
        return written

    def _embedded(self, tokens: Tensor, pixels: Tensor | None, sizes: Tensor | None) -> Tensor:
        parts = self.architecture
        device, dtype = parts.device, parts.dtype
        tokens = tokens.to(device)
        embedded: Tensor = parts.embed(tokens)
        if pixels is not None:
            features = parts.image_features(pixels.to(device, dtype), sizes)
            if self._adapter is not None:
                features = self._adapter(features.float()).to(features.dtype)
            vectors = parts.image_vectors(features.to(embedded), sizes)
            is_image = tokens == parts.image_code
            embedded = embedded.masked_scatter(is_image[:, :, None], vectors)
        if self._context is None or len(self._context) == 0:
            return embedded
        context = self._context.to(embedded).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], context, embedded[:, 1:]], dim=1)


def _module(path: Path) -> Any:  # noqa: ANN401  # a module is known by what it defines
    specification = importlib.util.spec_from_file_location("architecture", path)
    if specification is None or specification.loader is None:
        raise DamagedArtefact(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
