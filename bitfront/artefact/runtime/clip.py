"""CLIP in plain torch: a vision transformer and a causal text transformer, as open_clip has them.

This file travels with a packed checkpoint. Its modules are named as open_clip names them, but
every matrix belongs to a module that is called, so that its input can be rounded.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class QuickGELU(nn.Module):
    """OpenAI's approximation of the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """`x * sigmoid(1.702 x)`."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention whose projections of query, key and value are one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(n, m, d)` to the same; the mask is added to the scores."""
        n, m, width = x.shape
        q, k, v = (
            part.reshape(n, m, self.heads, width // self.heads).transpose(1, 2)
            for part in self.in_proj(x).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", QuickGELU() if quick_gelu else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(n, m, d)` to the same."""
        x = x + self.attn(self.ln_1(x), mask)
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, settings: dict[str, Any], *, quick_gelu: bool) -> None:
        super().__init__()
        sizes = settings["width"], settings["heads"], settings["hidden"]
        self.resblocks = nn.ModuleList(
            Block(*sizes, quick_gelu=quick_gelu) for _ in range(settings["layers"])
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(n, m, d)` to the same."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTower(nn.Module):
    """Patches and a class token through a transformer; the class token is the image's feature."""

    def __init__(self, settings: dict[str, Any], features: int, *, quick_gelu: bool) -> None:
        super().__init__()
        width, patch, positions = settings["width"], settings["patch"], settings["positions"]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(positions, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(settings, quick_gelu=quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, features, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, d)`, not normalised."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([token, patches], dim=1) + self.positional_embedding)
        features: Tensor = self.proj(self.ln_post(self.transformer(x))[:, 0])
        return features


class Clip(nn.Module):
    """Both towers, under open_clip's names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        text, features, quick = config["text"], config["features"], config["quick_gelu"]
        length = text["positions"]
        self.visual = VisionTower(config["vision"], features, quick_gelu=quick)
        self.token_embedding = nn.Embedding(text["vocabulary"], text["width"])
        self.positional_embedding = nn.Parameter(torch.zeros(length, text["width"]))
        self.transformer = Transformer(text, quick_gelu=quick)
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Linear(text["width"], features, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        mask = torch.full((length, length), float("-inf")).triu(diagonal=1)
        self.register_buffer("attn_mask", mask, persistent=False)
        self.attn_mask: Tensor

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """`(n, length)` to `(n, d)`, not normalised; the largest code is the end of a text."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask.to(x.dtype)))
        rows = torch.arange(len(tokens), device=tokens.device)
        features: Tensor = self.text_projection(x[rows, tokens.argmax(dim=-1)])
        return features


class Architecture:
    """The modules with their preprocessing and their words.

    Attributes:
        module: What holds the weights.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.module = Clip(config)
        self._preprocessing: dict[str, Any] = config["preprocessing"]
        self._words: dict[str, Any] | None = config["words"]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, d)`, not normalised."""
        features: Tensor = self.module.visual(pixels)
        return features

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """`(n, length)` to `(n, d)`, not normalised."""
        return self.module.encode_texts(tokens)

    def preprocess(self, picture: Any) -> Tensor:  # noqa: ANN401  # Pillow's
        """A Pillow picture to `(3, h, w)`."""
        return prepare_picture(picture, self._preprocessing)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Captions to `(n, length)`.

        Raises:
            ValueError: A word is not known, a caption is too long, or the tokens of this model
                are open_clip's, which is not installed.
        """
        if self._words is None:
            raise ValueError(
                "this model's captions are tokenized by open_clip: encode its tokens with "
                "architecture.encode_texts(open_clip.get_tokenizer(NAME)(captions))"
            )
        return tokenize_words(texts, self._words)


def prepare_picture(picture: Any, settings: dict[str, Any]) -> Tensor:  # noqa: ANN401  # Pillow's
    """A picture resized, perhaps cut to its middle, and normalised: `(3, h, w)` float32."""
    from PIL.Image import Resampling

    height, width = settings["size"]
    mode = Resampling[settings["interpolation"].upper()]
    picture = picture.convert(settings["mode"])
    if settings["resize"] == "squash":
        picture = picture.resize((width, height), mode)
    else:
        picture = _cover(picture, height, width, mode)
    channels = len(picture.getbands())
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(height, width, channels).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    return ((pixels - mean) / std).expand(3, -1, -1).contiguous()


def _cover(picture: Any, height: int, width: int, mode: Any) -> Any:  # noqa: ANN401  # Pillow's
    """The picture resized so that its shorter side fits, and cut to its middle."""
    wide, high = picture.size
    if wide <= high:
        picture = picture.resize((width, int(width * high / wide)), mode)
    else:
        picture = picture.resize((int(height * wide / high), height), mode)
    left = round((picture.width - width) / 2)
    top = round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def tokenize_words(texts: list[str], words: dict[str, Any]) -> Tensor:
    """Word codes `(n, length)` between a start and an end, padded with 0."""
    codes = {word: code for code, word in enumerate(words["vocabulary"])}
    tokens = torch.zeros(len(texts), words["length"], dtype=torch.int64)
    for row, text in enumerate(texts):
        known = text.lower().replace(".", " ").replace(",", " ").split()
        unknown = [word for word in known if word not in codes]
        if unknown:
            raise ValueError(f"{text!r} has words that the model does not know: {unknown}")
        found = [words["start"], *(codes[word] for word in known), words["end"]]
        if len(found) > words["length"]:
            raise ValueError(f"{text!r} has more than {words['length'] - 2} words")
        tokens[row, : len(found)] = torch.tensor(found)
    return tokens


def build(config: dict[str, Any], folder: Path) -> Architecture:
    """The architecture of a card's configuration; its weights are still to come."""
    del folder
    return Architecture(json.loads(json.dumps(config)))
