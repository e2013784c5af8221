"""CLIP and SigLIP in plain torch: a vision transformer and a text transformer.

This file travels with a packed checkpoint. Its modules are named as open_clip names them, but
every matrix belongs to a module that is called, so that its input can be rounded.
"""

import html
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENIZER = "tokenizer.json"


class QuickGELU(nn.Module):
    """OpenAI's approximation of the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """`x * sigmoid(1.702 x)`."""
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """What stands between a perceptron's products."""
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class Attention(nn.Module):
    """Attention; the projections of query, key and value are one matrix, or three."""

    def __init__(self, width: int, heads: int, *, apart: bool) -> None:
        super().__init__()
        self.heads = heads
        self.apart = apart
        if apart:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        else:
            self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, queries: int | None = None) -> Tensor:
        """`(n, m, d)` to the same, or what the first `queries` tokens ask the others for.

        The mask is added to the scores.
        """
        q, k, v = self._projected(x)
        if queries is not None:
            q, k, v = q[:, :queries], k[:, queries:], v[:, queries:]
        q, k, v = (
            part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (q, k, v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.apart:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        chunks: tuple[Tensor, ...] = self.in_proj(x).chunk(3, dim=-1)
        return chunks


def perceptron(settings: dict[str, Any]) -> nn.Sequential:
    """Two products with an activation between them."""
    width, hidden = settings["width"], settings["hidden"]
    layers = nn.Sequential()
    layers.add_module("c_fc", nn.Linear(width, hidden))
    layers.add_module("gelu", activation(settings["activation"]))
    layers.add_module("c_proj", nn.Linear(hidden, width))
    return layers


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, eps = settings["width"], settings["eps"]
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, settings["heads"], apart=settings["apart"])
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = perceptron(settings)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(n, m, d)` to the same."""
        x = x + self.attn(self.ln_1(x), mask)
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(settings) for _ in range(settings["layers"]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(n, m, d)` to the same."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Pool(nn.Module):
    """SigLIP's head: a learned token asks all others, and a perceptron follows."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width = settings["width"]
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attn = Attention(width, settings["heads"], apart=False)
        self.ln = nn.LayerNorm(width, eps=settings["eps"])
        self.mlp = perceptron(settings)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, m, d)` to `(n, d)`."""
        probe = self.probe.expand(len(x), -1, -1)
        found = self.attn(torch.cat([probe, x], dim=1), None, queries=1)[:, 0]
        output: Tensor = found + self.mlp(self.ln(found))
        return output


class VisionTower(nn.Module):
    """Patches through a transformer, with a class token that is the image's feature, or a pool."""

    def __init__(self, settings: dict[str, Any], features: int) -> None:
        super().__init__()
        width, patch, eps = settings["width"], settings["patch"], settings["eps"]
        self.has_class = settings["pool"] == "class"
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=not self.has_class)
        self.positional_embedding = nn.Parameter(torch.zeros(settings["positions"], width))
        self.transformer = Transformer(settings)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        if self.has_class:
            self.class_embedding = nn.Parameter(torch.zeros(width))
            self.ln_pre = nn.LayerNorm(width, eps=eps)
            self.proj = nn.Linear(width, features, bias=False)
        else:
            self.pool = Pool(settings)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, d)`, not normalised."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        if not self.has_class:
            pooled: Tensor = self.pool(
                self.ln_post(self.transformer(x + self.positional_embedding))
            )
            return pooled
        token = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([token, x], dim=1) + self.positional_embedding)
        features: Tensor = self.proj(self.ln_post(self.transformer(x)[:, 0]))
        return features


class Clip(nn.Module):
    """Both towers, under open_clip's names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        text, features = config["text"], config["features"]
        length, width = text["positions"], text["width"]
        self.end: int | str = text["end"]
        self.visual = VisionTower(config["vision"], features)
        self.token_embedding = nn.Embedding(text["vocabulary"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.transformer = Transformer(text)
        self.ln_final = nn.LayerNorm(width, eps=text["eps"])
        self.text_projection = nn.Linear(width, features, bias=text["projection_bias"])
        for name, shape in config["scalars"].items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        mask = torch.full((length, length), float("-inf")).triu(diagonal=1)
        self.register_buffer("attn_mask", mask if text["causal"] else None, persistent=False)
        self.attn_mask: Tensor | None

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """`(n, length)` to `(n, d)`, not normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = None if self.attn_mask is None else self.attn_mask.to(x.dtype)
        x = self.transformer(x, mask)
        x = self.ln_final(x[torch.arange(len(tokens), device=tokens.device), self._ends(tokens)])
        features: Tensor = self.text_projection(x)
        return features

    def _ends(self, tokens: Tensor) -> Tensor:
        """The place in each row whose token is the text's feature."""
        if self.end == "last":
            return tokens.new_full((len(tokens),), tokens.shape[1] - 1)
        sought = tokens if self.end == "largest" else tokens.eq(int(self.end)).int()
        return sought.argmax(dim=-1)


class Architecture:
    """The modules with their preprocessing and their words.

    Attributes:
        module: What holds the weights.
    """

    def __init__(self, config: dict[str, Any], tokenizer: Any = None) -> None:  # noqa: ANN401  # of tokenizers
        self.module = Clip(config)
        self._preprocessing: dict[str, Any] = config["preprocessing"]
        self._words: dict[str, Any] | None = config["words"]
        self._tokenizer = tokenizer

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
                are those of another library.
        """
        if self._words is None:
            raise ValueError(
                "this model's captions have a tokenizer of their own, open_clip's or "
                "transformers': encode its tokens with architecture.encode_texts(tokens)"
            )
        if self._tokenizer is not None:
            captions = [cleaned(text) for text in texts] if self._words["cleans"] else texts
            return torch.tensor([row.ids for row in self._tokenizer.encode_batch(captions)])
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


def cleaned(text: str) -> str:
    """A caption as open_clip's tokenizer takes it: mended, without entities, in small letters."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


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
    tokenizer = None
    if (folder / TOKENIZER).is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    return Architecture(json.loads(json.dumps(config)), tokenizer)
