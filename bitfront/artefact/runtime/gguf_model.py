"""Runs a LLaVA in llama.cpp: the decoder of `decoder.gguf`, after the tower of `mmproj.gguf`.

This file travels with the models, and `exported_model.py` with it. They need xllamacpp (llama.cpp),
gguf, NumPy, and Pillow for pictures; a model with a tokenizer of its own needs tokenizers. Image
features come from NumPy, and llama.cpp takes them as embeddings between tokens.

    model = load("model/")
    model.answer(picture, question)
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import exported_model  # type: ignore[import-not-found]  # it lies beside this file
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

DECODER, PROJECTOR = "decoder.gguf", "mmproj.gguf"

Array = np.ndarray[Any, np.dtype[Any]]

_POINTER = ctypes.c_void_p
_ERROR = 4  # the level of llama.cpp's messages from which on they are shown
_LEAST_CONTEXT = 256


def load(folder: str | Path, threads: int = 0, *, unpack: bool = False) -> "GgufAnswerer":
    """The model in a folder.

    Args:
        folder: What `bitfront build` wrote.
        threads: Of llama.cpp; 0 takes OMP_NUM_THREADS, or else all cores.
        unpack: Whether the tower's weights are unpacked once, and not for each picture: faster, at
            the memory of float32.

    Raises:
        exported_model.DamagedArtefact: A file is missing, or its digest is not the one on the card.
        OSError: llama.cpp refuses the model, or is another one than this file was written for.
    """
    folder = Path(folder)
    card: dict[str, Any] = json.loads((folder / exported_model.CARD).read_text(encoding="utf-8"))
    exported_model.check_files(folder, card)
    return GgufAnswerer(folder, card, threads, unpack=unpack)


class GgufAnswerer(exported_model.Answerer):  # type: ignore[misc]  # it lies beside this file
    """A LLaVA that answers questions about pictures.

    Attributes:
        card: What `card.json` says.
        ends: The tokens that end an answer.
    """

    def __init__(
        self, folder: Path, card: dict[str, Any], threads: int, *, unpack: bool = False
    ) -> None:
        self.card = card
        self.ends: frozenset[int] = frozenset(card["ends"])
        self._words = exported_model.Words(folder, card)
        self._tower = Tower(folder / PROJECTOR, unpack=unpack)
        self._decoder = Decoder(folder / DECODER, threads)

    def logits(self, tokens: Array, pixels: Array | None, kept: int) -> Array:
        """The logits `(n, kept, vocabulary)` after the last `kept` of the tokens `(n, length)`."""
        return np.stack(
            [self._read(row, pixels, number, kept, 0) for number, row in enumerate(tokens)]
        )

    def generate(self, tokens: Array, pixels: Array | None, limit: int) -> list[list[int]]:
        """Greedy tokens of each row up to its end, at most `limit`, after prompts of one length."""
        written = []
        for number, row in enumerate(tokens):
            logits = self._read(row, pixels, number, 1, limit)
            found = [int(logits[-1].argmax())]
            while len(found) < limit and found[-1] not in self.ends:
                logits = self._decoder.feed(np.array(found[-1:], np.int32), 1)
                found.append(int(logits[-1].argmax()))
            written.append(found)
        return written

    def _read(self, row: Array, pixels: Array | None, number: int, kept: int, more: int) -> Array:
        """The logits of the last `kept` tokens of a prompt; there is room for `more` after it."""
        self._decoder.start(len(row) + more)
        logits = []
        for part, after in self._parts(row, pixels, number):
            logits.append(self._decoder.feed(part, min(max(kept - after, 0), len(part))))
        return np.concatenate(logits)

    def _parts(self, row: Array, pixels: Array | None, number: int) -> Iterator[tuple[Array, int]]:
        """Tokens, or the features of an image where they stand, and how many places come after."""
        is_image = (
            row == self.card["image_code"] if pixels is not None else np.zeros(len(row), bool)
        )
        starts = [0, *(1 + np.flatnonzero(np.diff(is_image))).tolist(), len(row)]
        features = self._tower.features(pixels[number]) if pixels is not None else np.empty(0)
        used = 0
        for start, end in pairwise(starts):
            if is_image[start]:
                yield features[used : used + end - start], len(row) - end
                used += end - start
            else:
                yield row[start:end].astype(np.int32), len(row) - end


class Tower:
    """CLIP's tower with a projector; its weights stay packed until they multiply, or not."""

    def __init__(self, path: Path, *, unpack: bool = False) -> None:
        reader = GGUFReader(path)
        self._tensors = {t.name: (np.asarray(t.data), t.tensor_type) for t in reader.tensors}
        if unpack:
            for name in self._tensors:
                self._tensors[name] = self._weight(name), GGMLQuantizationType.F32
        settings = {name: field.contents() for name, field in reader.fields.items()}
        self._heads: int = settings["clip.vision.attention.head_count"]
        self._layers: int = settings["clip.vision.block_count"]
        self._eps: float = settings["clip.vision.attention.layer_norm_epsilon"]

    def features(self, pixels: Array) -> Array:
        """What the decoder reads of pixels `(3, h, w)`: `(patches, width)`."""
        rows = np.concatenate([self._weight("v.class_embd")[None], self._patches(pixels)])
        return self._projected(self._encoded(rows)[1:])

    def _encoded(self, rows: Array) -> Array:
        x = self._normed(rows + self._weight("v.position_embd.weight"), "v.pre_ln")
        for number in range(self._layers):
            name = f"v.blk.{number}"
            x = x + self._attention(self._normed(x, f"{name}.ln1"), name)
            hidden = self._product(self._normed(x, f"{name}.ln2"), f"{name}.ffn_up")
            x = x + self._product(hidden / (1 + np.exp(-1.702 * hidden)), f"{name}.ffn_down")
        return x

    def _projected(self, x: Array) -> Array:
        hidden = self._product(x, "mm.0")
        return self._product(hidden * 0.5 * (1 + _erf(hidden / np.sqrt(2))), "mm.2")

    def _weight(self, name: str) -> Array:
        values: Array = dequantize(*self._tensors[name])
        return values

    def _product(self, x: Array, name: str) -> Array:
        product: Array = x @ self._weight(f"{name}.weight").T
        return product + self._weight(f"{name}.bias")

    def _patches(self, pixels: Array) -> Array:
        kernel = self._weight("v.patch_embd.weight")
        width, channels, side, _ = kernel.shape
        _, high, wide = pixels.shape
        tiles = pixels.reshape(channels, high // side, side, wide // side, side)
        rows = tiles.transpose(1, 3, 0, 2, 4).reshape(-1, channels * side * side)
        product: Array = rows @ kernel.reshape(width, -1).T
        return product

    def _normed(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self._eps)
        normed: Array = centred / spread * self._weight(f"{name}.weight")
        return normed + self._weight(f"{name}.bias")

    def _attention(self, x: Array, name: str) -> Array:
        length, width = x.shape
        q, k, v = (
            self._product(x, f"{name}.attn_{part}").reshape(length, self._heads, -1).swapaxes(0, 1)
            for part in "qkv"
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width // self._heads)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ v).swapaxes(0, 1).reshape(length, width)
        return self._product(mixed, f"{name}.attn_out")


def _erf(x: Array) -> Array:
    """The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    powers = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    rest = t * (0.254829592 + t * (-0.284496736 + t * powers)) * np.exp(-np.square(x))
    return np.copysign(1 - rest, x)


class _Settings(ctypes.Structure):
    """Settings that llama.cpp gives and takes by value, as words; what is behind them is unused."""

    _fields_ = (("words", ctypes.c_int32 * 128),)


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("tokens", _POINTER),
        ("embeddings", _POINTER),
        ("places", _POINTER),
        ("sequence_counts", _POINTER),
        ("sequences", _POINTER),
        ("outputs", _POINTER),
    )


# Places of settings among their words, and what llama.cpp has there: another layout shows.
_MODEL_DEFAULTS = {4: -1, 5: 1}  # all layers on GPUs, split by layer
_CONTEXT_DEFAULTS = {0: 512, 1: 2048, 2: 512, 3: 1, 13: -1, 26: 1, 27: 1}
_GPU_LAYERS = 4
_SIZE, _BATCH, _MICRO_BATCH, _THREADS, _BATCH_THREADS = 0, 1, 2, 7, 8
_FLASH, _KEYS, _VALUES = 13, 26, 27
_MOST_AT_ONCE = 512


class Decoder:
    """llama.cpp's decoder, by its C interface, with keys and values in float32."""

    def __init__(self, path: Path, threads: int) -> None:
        self._library = _open_library()
        self._threads = threads or _cores()
        self._place = 0
        self._size = 0
        self._context: int | None = None
        self._call("llama_backend_init", None)()
        settings = self._defaults("llama_model_default_params", _MODEL_DEFAULTS)
        settings.words[_GPU_LAYERS] = 0
        self._model = self._call(
            "llama_model_load_from_file", _POINTER, ctypes.c_char_p, _Settings
        )(str(path).encode(), settings)
        if self._model is None:
            raise OSError(f"llama.cpp refuses {path}")
        vocabulary = self._call("llama_model_get_vocab", _POINTER, _POINTER)(self._model)
        self._words: int = self._call("llama_vocab_n_tokens", ctypes.c_int32, _POINTER)(vocabulary)
        self._decode = self._call("llama_decode", ctypes.c_int32, _POINTER, _Batch)
        self._logits = self._call("llama_get_logits", _POINTER, _POINTER)
        self.start(_LEAST_CONTEXT)

    def start(self, length: int) -> None:
        """Forgets what was fed, and has room for so many tokens."""
        if length > self._size:
            self._open(-(-length // _LEAST_CONTEXT) * _LEAST_CONTEXT)
        memory = self._call("llama_get_memory", _POINTER, _POINTER)(self._context)
        self._call("llama_memory_clear", None, _POINTER, ctypes.c_bool)(memory, True)  # noqa: FBT003  # of C
        self._place = 0

    def feed(self, part: Array, kept: int) -> Array:
        """Goes on with tokens `(m,)` or embeddings `(m, d)`: the logits after the last `kept`."""
        part = np.ascontiguousarray(part, np.int32 if part.ndim == 1 else np.float32)
        count = len(part)
        places = np.arange(self._place, self._place + count, dtype=np.int32)
        sequence = np.zeros(1, np.int32)
        sequences = np.full(count, sequence.ctypes.data, np.uintp)
        counts = np.ones(count, np.int32)
        outputs = (np.arange(count) >= count - kept).astype(np.int8)
        own = part.ctypes.data
        batch = _Batch(
            count,
            own if part.ndim == 1 else None,
            own if part.ndim > 1 else None,
            places.ctypes.data,
            counts.ctypes.data,
            sequences.ctypes.data,
            outputs.ctypes.data,
        )
        state = self._decode(self._context, batch)
        if state:
            raise OSError(f"llama.cpp stops with {state} at place {self._place} of a prompt")
        self._place += count
        if not kept:
            return np.empty((0, self._words), np.float32)
        found = ctypes.cast(self._logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(found, (kept, self._words)).copy()

    def _open(self, size: int) -> None:
        free = self._call("llama_free", None, _POINTER)
        if self._context is not None:
            free(self._context)
        settings = self._defaults("llama_context_default_params", _CONTEXT_DEFAULTS)
        words = settings.words
        words[_SIZE] = words[_BATCH] = size
        words[_MICRO_BATCH] = min(size, _MOST_AT_ONCE)
        words[_FLASH] = words[_KEYS] = words[_VALUES] = 0  # no flash attention, float32
        words[_THREADS] = words[_BATCH_THREADS] = self._threads
        self._context = self._call("llama_init_from_model", _POINTER, _POINTER, _Settings)(
            self._model, settings
        )
        if self._context is None:
            raise OSError(f"llama.cpp makes no context of {size} tokens")
        self._size = size

    def _defaults(self, name: str, known: dict[int, int]) -> _Settings:
        settings: _Settings = self._call(name, _Settings)()
        if any(settings.words[place] != value for place, value in known.items()):
            raise OSError(
                "this llama.cpp has another interface than the one that gguf_model.py knows: "
                "'pip install xllamacpp==2026.10.11549' has it"
            )
        return settings

    def _call(self, name: str, gives: Any, *takes: Any) -> Callable[..., Any]:  # noqa: ANN401  # of ctypes
        function = getattr(self._library, name)
        function.restype, function.argtypes = gives, takes
        found: Callable[..., Any] = function
        return found


def _cores() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _show_errors(level: int, message: bytes, _: object) -> None:
    if level == _ERROR:
        sys.stderr.write(message.decode(errors="replace"))


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _POINTER)
_LOG = _Log(_show_errors)  # it has to stay for as long as llama.cpp does


def _open_library() -> ctypes.CDLL:
    """llama.cpp's functions, which the extension module of xllamacpp exports."""
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    library.llama_log_set.argtypes = (_Log, _POINTER)
    library.llama_log_set(_LOG, None)
    return library
