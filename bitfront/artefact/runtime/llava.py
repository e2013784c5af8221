"""LLaVA in plain torch: a CLIP vision tower, a projector and a Llama decoder with its cache.

This file travels with a packed checkpoint. Its modules are named as transformers names them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

State = list[tuple[Tensor, Tensor]]


class VisionAttention(nn.Module):
    """Self-attention over patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, d)` to the same."""
        q, k, v = (_split(part(x), self.heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        output: Tensor = self.out_proj(_merge(functional.scaled_dot_product_attention(q, k, v)))
        return output


class VisionMlp(nn.Module):
    """Two products with a quick GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, d)` to the same."""
        x = self.fc1(x)
        output: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return output


class VisionLayer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width = settings["width"]
        self.self_attn = VisionAttention(width, settings["heads"])
        self.layer_norm1 = nn.LayerNorm(width, eps=settings["eps"])
        self.mlp = VisionMlp(width, settings["hidden"])
        self.layer_norm2 = nn.LayerNorm(width, eps=settings["eps"])

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, d)` to the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        output: Tensor = x + self.mlp(self.layer_norm2(x))
        return output


class VisionEmbeddings(nn.Module):
    """Patches and a class token, with their positions."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, patch = settings["width"], settings["patch"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(settings["positions"], width)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, positions, d)`."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([token, patches], dim=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """CLIP's vision tower up to the hidden state that is used."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width = settings["width"]
        self.embeddings = VisionEmbeddings(settings)
        self.pre_layrnorm = nn.LayerNorm(width, eps=settings["eps"])
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            VisionLayer(settings) for _ in range(settings["layers"])
        )
        self.post_layernorm = nn.LayerNorm(width, eps=settings["eps"])

    def forward(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, positions, d)`."""
        x: Tensor = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.get_submodule("layers").children():
            x = layer(x)
        return x


class Projector(nn.Module):
    """From the vision tower's width to the decoder's."""

    def __init__(self, vision: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, vision)` to `(n, m, width)`."""
        output: Tensor = self.linear_2(functional.gelu(self.linear_1(x)))
        return output


class RMSNorm(nn.Module):
    """The root-mean-square norm of Llama, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d)` to the same."""
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


class DecoderAttention(nn.Module):
    """Causal attention with rotary positions; several queries share a key and a value."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads = settings["width"], settings["heads"]
        self.groups, self.theta = settings["groups"], settings["theta"]
        self.size = settings["head_width"]
        self.q_proj = nn.Linear(width, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, self.groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, self.groups * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, width, bias=False)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`(n, m, d)` to the same, and the keys and values of all positions until now."""
        start = 0 if past is None else past[0].shape[2]
        length = x.shape[1]
        q = _split(self.q_proj(x), self.heads)
        k, v = _split(self.k_proj(x), self.groups), _split(self.v_proj(x), self.groups)
        cos, sin = self._angles(start, length, x)
        q, k = q * cos + _rotate(q) * sin, k * cos + _rotate(k) * sin
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        share = self.heads // self.groups
        seen = torch.ones(length, start + length, dtype=torch.bool, device=x.device)
        mixed = functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(share, dim=1),
            v.repeat_interleave(share, dim=1),
            attn_mask=seen.tril(diagonal=start),
        )
        return self.o_proj(_merge(mixed)), (k, v)

    def _angles(self, start: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.arange(0, self.size, 2, dtype=torch.float32, device=like.device)
        frequencies = 1.0 / self.theta ** (even / self.size)
        places = torch.arange(start, start + length, dtype=torch.float32, device=like.device)
        angles = torch.outer(places, frequencies).repeat(1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class DecoderMlp(nn.Module):
    """A gated perceptron."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, d)` to the same."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class DecoderLayer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, eps = settings["width"], settings["eps"]
        self.self_attn = DecoderAttention(settings)
        self.mlp = DecoderMlp(width, settings["hidden"])
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`(n, m, d)` to the same, and the layer's keys and values."""
        mixed, kept = self.self_attn(self.input_layernorm(x), past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Decoder(nn.Module):
    """Llama, from embedded tokens to normed hidden states."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(settings["vocabulary"], settings["width"])
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(settings["layers"]))
        self.norm = RMSNorm(settings["width"], settings["eps"])

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """`(n, m, d)` to the same, and what the next call continues from."""
        kept = []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, None if state is None else state[number])
            kept.append(own)
        return self.norm(x), kept


class Parts(nn.Module):
    """All but the head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        text, vision = config["text"], config["vision"]
        self.vision_tower = VisionTower(vision)
        self.multi_modal_projector = Projector(vision["width"], text["width"])
        self.language_model = Decoder(text)


class Llava(nn.Module):
    """All parts, under transformers' names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        text = config["text"]
        self.model = Parts(config)
        self.lm_head = nn.Linear(text["width"], text["vocabulary"], bias=False)
        if config["tied"]:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight


class Architecture:
    """The modules with their preprocessing and their words.

    Attributes:
        module: What holds the weights.
        image_code: The token at whose places an image stands.
        ends: The tokens that end an answer.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.module = Llava(config)
        self._parts = self.module.model
        self.image_code: int = config["image_code"]
        self.ends: frozenset[int] = frozenset(config["ends"])
        self._drops_first: bool = config["drops_first"]
        self._preprocessing: dict[str, Any] = config["preprocessing"]
        self._words: dict[str, Any] = config["words"]
        self._tokenizer: Any = None
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self._parts.language_model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the module computes in."""
        return self._parts.language_model.norm.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """`(n, m)` to `(n, m, d)`."""
        embedded: Tensor = self._parts.language_model.embed_tokens(tokens)
        return embedded

    def image_features(self, pixels: Tensor, sizes: Tensor | None) -> Tensor:
        """`(n, 3, h, w)` to what the projector gives, `(n, tokens, d)`."""
        del sizes
        hidden = self._parts.vision_tower(pixels)
        features: Tensor = self._parts.multi_modal_projector(
            hidden[:, 1:] if self._drops_first else hidden
        )
        return features

    def image_vectors(self, features: Tensor, sizes: Tensor | None) -> Tensor:
        """Those features as the decoder reads them, row after row."""
        del sizes
        return features.flatten(0, 1)

    def logits(self, embedded: Tensor, kept: int) -> Tensor:
        """The logits of the last `kept` positions, `(n, kept, vocabulary)`."""
        hidden, _ = self._parts.language_model(embedded, None)
        logits: Tensor = self.module.lm_head(hidden[:, -kept:])
        return logits

    def continue_from(self, embedded: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The logits of the last position, and what the next call continues from."""
        hidden, state = self._parts.language_model(embedded, state)
        return self.module.lm_head(hidden[:, -1]), state

    def prepare(
        self,
        text: str,
        picture: Any,  # noqa: ANN401  # Pillow's
    ) -> tuple[Tensor, Tensor | None, None]:
        """A question to its tokens and pixels.

        Raises:
            ValueError: A word is not known.
        """
        words = self._words
        pixels = None if picture is None else self._pixels(picture)
        if self._tokenizer is not None:
            token = words["image_token"]
            spread = text.replace(token, token * words["image_tokens"])
            return torch.tensor(self._tokenizer.encode(spread).ids), pixels, None
        codes = {word: code for code, word in enumerate(words["vocabulary"])}
        plain = "".join(" " if letter in ".,?!" else letter for letter in text.lower()).split()
        unknown = [word for word in plain if word not in codes]
        if unknown:
            raise ValueError(f"{text!r} has words that the model does not know: {unknown}")
        tokens = [words["start"]]
        for word in plain:
            times = words["image_tokens"] if codes[word] == self.image_code else 1
            tokens += [codes[word]] * times
        tokens.append(words["answer"])
        return torch.tensor(tokens), pixels, None

    def decode(self, tokens: list[int]) -> str:
        """The words of some tokens."""
        if self._tokenizer is not None:
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
            return text.strip()
        return " ".join(self._words["vocabulary"][token] for token in tokens)

    def _pixels(self, picture: Any) -> Tensor:  # noqa: ANN401  # Pillow's
        from PIL.Image import Resampling

        settings = self._preprocessing
        height, width = settings["size"]
        mode = Resampling[settings["interpolation"].upper()]
        picture = picture.convert(settings["mode"])
        if settings["resize"] == "squash":
            picture = picture.resize((width, height), mode)
        else:
            size = [width * side // min(picture.size) for side in picture.size]
            left, top = (round((side - width) / 2) for side in size)
            picture = picture.resize(size, mode).crop((left, top, left + width, top + height))
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, -1).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
        return ((pixels - mean) / std).expand(3, -1, -1).contiguous()


def _split(x: Tensor, heads: int) -> Tensor:
    n, m, width = x.shape
    return x.reshape(n, m, heads, width // heads).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _rotate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def build(config: dict[str, Any], folder: Path) -> Architecture:
    """The architecture of a card's configuration; its weights are still to come."""
    return Architecture(config, folder)
