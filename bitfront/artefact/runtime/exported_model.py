"""Runs exported models: in ONNX Runtime where they are .onnx files, in OpenVINO where .xml.

This file travels with the models. It needs NumPy, the runtime, and Pillow for pictures; a model
with a tokenizer of its own needs tokenizers. `card.json` says what is in the folder.

    model = load("model/")
    model.classify(picture)
    # or, for a generative model
    model.answer(picture, question)
    # or, for a model that finds pictures by captions
    model.similarity(model.image_features(pictures), model.text_features(captions))
"""

import hashlib
import html
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FLOAT = "f32"
CARD, CONTEXT, TOKENIZER = "card.json", "context.npy", "tokenizer.json"

Array = np.ndarray[Any, np.dtype[Any]]
Graph = Callable[[dict[str, Array]], dict[str, Array]]
State = dict[str, Array]


class DamagedArtefact(ValueError):
    """A file of the folder is missing, or is not the one that was written."""


def load(folder: str | Path, threads: int = 0, dtype: str = FLOAT) -> "Encoder | Answerer":
    """The model in a folder: a `Classifier`, another `Encoder`, or an `Answerer`.

    Args:
        folder: What `bitfront build` wrote.
        threads: Of the runtime; 0 leaves it to the runtime.
        dtype: As `open_graph` takes it.

    Raises:
        DamagedArtefact: A file is missing, or its digest is not the one on the card.
    """
    folder = Path(folder)
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedArtefact(f"{folder} holds no readable {CARD}: {error}") from error
    check_files(folder, card)
    kinds: dict[str, type[Encoder | Answerer]] = {
        "classification": Classifier,
        "retrieval": Encoder,
        "answering": Answerer,
    }
    return kinds[card["task"]](folder, card, threads, dtype)


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


def open_graph(
    folder: Path, name: str, threads: int, activation_group: int = 0, dtype: str = FLOAT
) -> Graph:
    """A model by the name of its file without the ending: named arrays to named arrays.

    Args:
        folder: Where it lies.
        name: Of the file.
        threads: Of the runtime; 0 leaves it to the runtime.
        activation_group: Columns of an input that OpenVINO rounds with one scale, where a layer's
            weight asks for it; 0 for none. What ONNX Runtime rounds stands in the model.
        dtype: What OpenVINO computes in: `f32` as the trial was measured, or `bf16`, where it is
            free to round what it likes. ONNX Runtime computes in the former.
    """
    if (folder / f"{name}.xml").is_file():
        return _in_openvino(folder / f"{name}.xml", threads, activation_group, dtype)
    return _in_onnxruntime(folder / f"{name}.onnx", threads)


def _in_onnxruntime(path: Path, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def _in_openvino(path: Path, threads: int, activation_group: int, dtype: str) -> Graph:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # In accuracy mode inputs that the trial left alone stay in float32.
        "EXECUTION_MODE_HINT": "ACCURACY" if dtype == FLOAT else "PERFORMANCE",
        "INFERENCE_PRECISION_HINT": dtype,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": activation_group,
        "ENABLE_MMAP": True,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if any(_is_int8_weight(node) for node in model.get_ops()) and int8_saturates():
        settings["LP_TRANSFORMS_MODE"] = "NO"  # products of codes become products of floats
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    names = [output.names for output in compiled.outputs]

    def run(given: dict[str, Array]) -> dict[str, Array]:
        request.infer(given, share_inputs=True)
        outputs = [np.array(tensor.data) for tensor in request.output_tensors]
        pairs = zip(names, outputs, strict=True)
        return {name: output for known, output in pairs for name in known}

    return run


def _is_int8_weight(node: Any) -> bool:  # noqa: ANN401  # OpenVINO's
    """Whether it holds codes of all of int8; those of fewer bits lie packed."""
    if node.get_type_name() != "Constant":
        return False
    return node.get_element_type().get_type_name() == "i8" and len(node.get_output_shape(0)) > 1


@cache
def int8_saturates() -> bool:
    """Whether OpenVINO's sums of 8-bit products overflow on this CPU, as they do without VNNI.

    Its kernels then add two products of a uint8 and an int8 in an int16: 2 * 255 * 127 is more.
    """
    import openvino
    from openvino import opset13 as operators

    columns, rows = 64, 16  # enough for its fast kernel
    given = operators.parameter([1, columns], np.float32)
    low, high = np.float32(0), np.float32(255)
    rounded = operators.fake_quantize(given, low, high, low, high, levels=256)
    codes = operators.constant(np.full((rows, columns), 127, np.int8))
    weight = operators.multiply(operators.convert(codes, "f32"), np.ones((rows, 1), np.float32))
    product = operators.matmul(rounded, weight, transpose_a=False, transpose_b=True)
    compiled = openvino.Core().compile_model(openvino.Model([product], [given]), "CPU")
    found = compiled([np.full((1, columns), 255, np.float32)])[0]
    return not np.allclose(found, 255 * 127 * columns)


class Encoder:
    """A dual encoder, which compares pictures with captions.

    Attributes:
        card: What `card.json` says.
    """

    towers: tuple[str, ...] = ("image", "text")
    """What is opened when the model is loaded; the rest is when it is needed."""

    def __init__(
        self, folder: Path, card: dict[str, Any], threads: int, dtype: str = FLOAT
    ) -> None:
        self.card = card
        self._folder = folder
        self._threads = threads
        self._dtype = dtype
        self._captions = Captions(folder, card["words"])
        self._graphs = {name: self._opened(name) for name in self.towers}

    def image_features(self, pictures: Any) -> Array:  # noqa: ANN401  # Pillow's
        """The features `(n, d)`, float32 of length 1, of a Pillow picture or a list of them."""
        several = pictures if isinstance(pictures, list | tuple) else [pictures]
        pixels = [preprocess(picture, self.card["preprocessing"]) for picture in several]
        return self.encode_images(np.stack(pixels))

    def text_features(self, captions: str | list[str]) -> Array:
        """The features `(n, d)`, float32 of length 1, of a caption or a list of them.

        Raises:
            ValueError: A word is not known, or a caption is too long.
        """
        several = [captions] if isinstance(captions, str) else captions
        return self.encode_texts(self.tokenize(several))

    def similarity(self, images: Array, texts: Array) -> Array:
        """The cosines `(images, texts)` of features of length 1."""
        found: Array = images @ texts.T
        return found

    def tokenize(self, captions: list[str]) -> Array:
        """The tokens `(n, length)`, int64, of captions."""
        return self._captions.tokens(captions)

    def encode_images(self, pixels: Array) -> Array:
        """The image features `(n, d)`, of length 1, of pixels `(n, 3, h, w)`."""
        return self._graph("image")({"pixels": pixels})["features"]

    def encode_texts(self, tokens: Array) -> Array:
        """The text features `(n, d)`, of length 1, of tokens `(n, length)` int64."""
        return self._graph("text")({"tokens": tokens})["features"]

    def _graph(self, name: str) -> Graph:
        if name not in self._graphs:
            self._graphs[name] = self._opened(name)
        return self._graphs[name]

    def _opened(self, name: str) -> Graph:
        group = self.card["activation_group"]
        return open_graph(self._folder, name, self._threads, group, self._dtype)


class Classifier(Encoder):
    """A dual encoder that tells the classes of its card apart.

    Attributes:
        classes: The names of the classes.
    """

    towers = ("image",)

    def __init__(
        self, folder: Path, card: dict[str, Any], threads: int, dtype: str = FLOAT
    ) -> None:
        super().__init__(folder, card, threads, dtype)
        self.classes: list[str] = card["classes"]

    def classify(self, picture: Any, top: int = 3) -> list[tuple[str, float]]:  # noqa: ANN401  # Pillow's
        """The `top` most likely classes of a Pillow picture with their shares, the best first."""
        pixels = preprocess(picture, self.card["preprocessing"])[None]
        logits = self.logits(pixels)[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:top]
        return [(self.classes[place], float(shares[place])) for place in best]

    def logits(self, pixels: Array) -> Array:
        """The scaled cosines `(n, classes)` of pixels `(n, 3, h, w)` with every class."""
        return self._graph("image")({"pixels": pixels})["logits"]


class Decoder:
    """What writes one token after the other: a look-up, and a decoder with its cache.

    Args:
        folder: Where the models are.
        cache: How many `layers` the cache has, and each of them `groups` of keys of a `size`.
        threads: Of the runtime; 0 leaves it to the runtime.
        activation_group: As `open_graph` takes it.
        dtype: The same.
    """

    def __init__(
        self,
        folder: Path,
        cache: dict[str, int],
        threads: int,
        activation_group: int,
        dtype: str = FLOAT,
    ) -> None:
        self._cache = cache
        self._embed, self._decoder = (
            open_graph(folder, name, threads, activation_group, dtype)
            for name in ("embed_tokens", "decoder_model_merged")
        )

    def embedded(self, tokens: Array) -> Array:
        """Tokens `(n, m)` as `(n, m, d)`."""
        return self._embed({"input_ids": tokens})["inputs_embeds"]

    def empty(self, count: int, past: int = 0) -> State:
        """A cache of zeros for so many rows, with so many positions behind them."""
        form = self._cache
        zeros = np.zeros((count, form["groups"], past, form["size"]), np.float32)
        names = (
            f"{number}.{part}" for number in range(form["layers"]) for part in ("key", "value")
        )
        return dict.fromkeys(names, zeros)

    def after(self, embedded: Array, state: State | None) -> tuple[Array, State]:
        """The logits of all embedded positions, and what the next call continues from."""
        count, length, _ = embedded.shape
        if state is None:
            state = self.empty(count)
        past = next(iter(state.values())).shape[2]
        places = np.arange(past, past + length, dtype=np.int64)
        given = {
            "inputs_embeds": embedded,
            "attention_mask": np.ones((count, past + length), np.int64),
            "position_ids": np.tile(places, (count, 1)),
            **{f"past_key_values.{name}": kept for name, kept in state.items()},
        }
        found = self._decoder(given)
        return found["logits"], {name: found[f"present.{name}"] for name in state}


class Answerer:
    """A generative model that answers questions about pictures.

    Attributes:
        card: What `card.json` says.
        ends: The tokens that end an answer.
    """

    def __init__(
        self, folder: Path, card: dict[str, Any], threads: int, dtype: str = FLOAT
    ) -> None:
        self.card = card
        self.ends: frozenset[int] = frozenset(card["ends"])
        group = card["activation_group"]
        self._vision = open_graph(folder, "vision_encoder", threads, group, dtype)
        self._decoder = Decoder(folder, card["cache"], threads, group, dtype)
        self._words = Words(folder, card)
        context = folder / CONTEXT
        self._context = np.load(context).astype(np.float32) if context.is_file() else None

    def answer(self, picture: Any, question: str) -> str:  # noqa: ANN401  # Pillow's
        """The greedy answer to a question about a Pillow picture; None asks without a picture."""
        template, token = self.card["prompt"], self.card["image_token"]
        if picture is None:
            template = template.replace(f"{token}\n", "").replace(token, "").strip()
        tokens = self._words.tokens(template.replace("{}", question))
        pixels = None if picture is None else preprocess(picture, self.card["preprocessing"])[None]
        (written,) = self.generate(np.array([tokens]), pixels, self.card["answer_tokens"])
        end = next((n for n, token in enumerate(written) if token in self.ends), None)
        return self._words.text(written[:end])

    def logits(self, tokens: Array, pixels: Array | None, kept: int) -> Array:
        """The logits `(n, kept, vocabulary)` after the last `kept` of the tokens `(n, length)`."""
        logits, _ = self._decoder.after(self._embedded(tokens, pixels), None)
        return np.ascontiguousarray(logits[:, -kept:])

    def generate(self, tokens: Array, pixels: Array | None, limit: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end, at most `limit`, after prompts of one length."""
        embedded, state = self._embedded(tokens, pixels), None
        written: list[list[int]] = [[] for _ in range(len(tokens))]
        ended = [False] * len(tokens)
        for _ in range(limit):
            logits, state = self._decoder.after(embedded, state)
            chosen = logits[:, -1].argmax(axis=-1)
            for row, token in enumerate(chosen.tolist()):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in self.ends
            if all(ended):
                break
            embedded = self._decoder.embedded(chosen[:, None])
        return written

    def _embedded(self, tokens: Array, pixels: Array | None) -> Array:
        embedded = self._decoder.embedded(tokens)
        if pixels is not None:
            features = self._vision({"pixel_values": pixels})["image_features"]
            embedded[tokens == self.card["image_code"]] = features.reshape(-1, features.shape[-1])
        if self._context is None:
            return embedded
        context = np.broadcast_to(self._context, (len(embedded), *self._context.shape))
        return np.concatenate([embedded[:, :1], context, embedded[:, 1:]], axis=1)


class Captions:
    """Captions to tokens, with the tokenizer of the folder or with the words of the card."""

    def __init__(self, folder: Path, words: dict[str, Any] | None) -> None:
        self._words = words
        self._tokenizer: Any = None
        if (folder / TOKENIZER).is_file():
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    def tokens(self, captions: list[str]) -> Array:
        """Rows of tokens `(n, length)`, int64.

        Raises:
            ValueError: A word is not known, a caption is too long, or the tokens of this model
                are those of another library.
        """
        words = self._words
        if words is None:
            raise ValueError(
                "this model's captions have a tokenizer of their own, open_clip's or "
                "transformers': encode its tokens with encode_texts(tokens)"
            )
        if self._tokenizer is not None:
            texts = [cleaned(caption) for caption in captions] if words["cleans"] else captions
            rows = [row.ids for row in self._tokenizer.encode_batch(texts)]
            return np.array(rows, np.int64)
        return np.array([_word_codes(caption, words) for caption in captions], np.int64)


def cleaned(caption: str) -> str:
    """A caption as open_clip's tokenizer takes it: mended, without entities, in small letters."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(mended.split()).lower()


def _word_codes(caption: str, words: dict[str, Any]) -> list[int]:
    """Word codes between a start and an end, filled up with 0."""
    codes = {word: code for code, word in enumerate(words["vocabulary"])}
    known = caption.lower().replace(".", " ").replace(",", " ").split()
    unknown = [word for word in known if word not in codes]
    if unknown:
        raise ValueError(f"{caption!r} has words that the model does not know: {unknown}")
    found = [words["start"], *(codes[word] for word in known), words["end"]]
    if len(found) > words["length"]:
        raise ValueError(f"{caption!r} has more than {words['length'] - 2} words")
    return found + [0] * (words["length"] - len(found))


class Words:
    """Text to tokens and back, with the tokenizer of the folder or with the words of the card."""

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self._words = card["words"]
        self._image_token: str = card["image_token"]
        self._tokenizer: Any = None
        if (folder / TOKENIZER).is_file():
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    def tokens(self, text: str) -> list[int]:
        """The tokens of a prompt, with a place for each token of the image.

        Raises:
            ValueError: A word is not known.
        """
        words, token = self._words, self._image_token
        if self._tokenizer is not None:
            found: list[int] = self._tokenizer.encode(
                text.replace(token, token * words["image_tokens"])
            ).ids
            return found
        codes = {word: code for code, word in enumerate(words["vocabulary"])}
        plain = "".join(" " if letter in ".,?!" else letter for letter in text.lower()).split()
        unknown = [word for word in plain if word not in codes]
        if unknown:
            raise ValueError(f"{text!r} has words that the model does not know: {unknown}")
        tokens = [words["start"]]
        for word in plain:
            tokens += [codes[word]] * (words["image_tokens"] if word == token else 1)
        return [*tokens, words["answer"]]

    def text(self, tokens: list[int]) -> str:
        """The text of some tokens."""
        if self._tokenizer is not None:
            decoded: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
            return decoded.strip()
        return " ".join(self._words["vocabulary"][token] for token in tokens)


def preprocess(picture: Any, settings: dict[str, Any]) -> Array:  # noqa: ANN401  # Pillow's
    """A Pillow picture as the model takes it, `(3, h, w)` float32."""
    from PIL.Image import Resampling

    height, width = settings["size"]
    method = Resampling[settings["interpolation"].upper()]
    picture = picture.convert(settings["mode"])
    if settings["resize"] == "squash":
        picture = picture.resize((width, height), method)
    else:
        size = [width * side // min(picture.size) for side in picture.size]
        left, top = (round((side - width) / 2) for side in size)
        picture = picture.resize(size, method)
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32).reshape(height, width, -1) / np.float32(255)
    mean, std = (np.array(settings[name], np.float32) for name in ("mean", "std"))
    normal = ((pixels - mean) / std).transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(normal, (3, height, width)))
