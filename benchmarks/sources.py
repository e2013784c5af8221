"""How fast, and in how much memory, two workers read each source of data, beside a DataLoader.

Pictures of 16 x 16 random pixels in all forms, some of them read in a random order in batches. Of
bitfront two processes each open the source and read half, as its workers do; a DataLoader with two
workers brings the same pictures into one process, those of shards from end to end.

    OMP_NUM_THREADS=1 python -m benchmarks.sources --samples 100000 --read 6000 --repeats 3
"""

import io
import json
import multiprocessing
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, Final, Protocol

import click
import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from bitfront.spec import DataSpec
from objectives.data.caption_sources import open_caption_source
from objectives.data.images import decode_image
from objectives.data.question_sources import open_question_source
from objectives.data.sources import open_labelled_source

SIDE: Final = 16
CLASSES: Final = 10
SHARD: Final = 10_000
BATCH: Final = 64
WORKERS: Final = 2
LOOK: Final = 20
"""Batches of a DataLoader from one look at its memory to the next."""


Figures = tuple[float, float, int]
"""Samples a second, seconds to open, and bytes of all processes together."""


class Readable(Protocol):
    """A source, as far as it is read here."""

    def content(self, index: int) -> bytes:
        """An encoded image."""

    def where(self, index: int) -> str:
        """Where it is."""


@dataclass(frozen=True)
class Reading:
    """What one process did.

    Attributes:
        opened_s: Seconds until the samples were listed.
        read_s: Seconds of reading and decoding.
        count: Samples that were read.
        nbytes: Memory that the source and its reading took, beyond what was imported before.
    """

    opened_s: float
    read_s: float
    count: int
    nbytes: int


def held_nbytes() -> int:
    """The memory of this process and its own; what several share counts once."""
    here = psutil.Process()
    tree = [here, *here.children(recursive=True)]
    return sum(int(process.memory_full_info().pss) for process in tree)


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB image as `(3, h, w)` bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_source(settings: dict[str, Any]) -> Readable:
    """The source of a job's data."""
    spec = DataSpec.model_validate(settings)
    if spec.source == "captions" or spec.task == "retrieval":
        return open_caption_source(spec)
    return open_question_source(spec) if spec.source == "questions" else open_labelled_source(spec)


def read_here(settings: dict[str, Any], indices: list[int]) -> Reading:
    """Reads some samples of a source in this process, in batches."""
    base = held_nbytes()
    start = time.perf_counter()
    source = open_source(settings)
    opened = time.perf_counter()
    for first in range(0, len(indices), BATCH):
        part = indices[first : first + BATCH]
        torch.stack([pixels_of(decode_image(source.content(i), source.where(i))) for i in part])
    end = time.perf_counter()
    return Reading(opened - start, end - opened, len(indices), held_nbytes() - base)


class Files(Dataset[Tensor]):
    """Image files, as torchvision's `ImageFolder` reads them."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as image:
            return pixels_of(image.convert("RGB"))


class Rows(Dataset[Tensor]):
    """Rows of a saved dataset, decoded by `datasets`."""

    def __init__(self, path: str) -> None:
        import datasets

        self._rows = datasets.load_from_disk(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return pixels_of(self._rows[index]["image"].convert("RGB"))


class Shards(IterableDataset[Tensor]):
    """Shards from end to end, each by one worker, at most so many samples in all."""

    def __init__(self, shards: Sequence[str], count: int) -> None:
        self._shards, self._count = shards, count

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        own = self._shards[worker.id :: WORKERS] if worker else self._shards
        left = self._count // WORKERS
        for shard in own:
            with tarfile.open(shard, "r|") as tar:
                for member in tar:
                    if left and member.name.endswith(".png"):
                        file = tar.extractfile(member)
                        assert file is not None
                        left -= 1
                        yield pixels_of(Image.open(io.BytesIO(file.read())).convert("RGB"))


def torch_dataset(settings: dict[str, Any], count: int) -> Dataset[Tensor]:
    """The same source as a person reads it with torch alone."""
    kind, path = settings["source"], Path(settings["path"].removeprefix("file://"))
    if kind == "datasets":
        return Rows(str(path))
    if kind == "webdataset":
        return Shards(sorted(map(str, path.glob("*.tar"))), count)
    if kind == "image_folder":
        return Files(sorted(map(str, path.rglob("*.png"))))
    return Files([str(path.parent / name) for name in names_in(path)])


def names_in(path: Path) -> Sequence[str]:
    """The images that a table or a file of captions or questions names."""
    import pandas as pd

    if path.suffix in (".csv", ".parquet"):
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        return list(table["image"])
    with path.open() as file:
        if path.suffix == ".json":
            return [image["file_name"] for image in json.load(file)["images"]]
        return [json.loads(line)["image"] for line in file]


def read_by_torch(settings: dict[str, Any], indices: list[int]) -> Reading:
    """Reads some samples of a source by a DataLoader with two workers."""
    base = held_nbytes()
    start = time.perf_counter()
    dataset = torch_dataset(settings, len(indices))
    opened = time.perf_counter()
    sampler = None if isinstance(dataset, IterableDataset) else indices
    # As it is by default on Linux; in a spawned process it would spawn workers.
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=WORKERS, multiprocessing_context="fork"
    )
    batches = iter(loader)
    next(batches)
    begun = time.perf_counter()  # the workers have started
    count, most, looking_s = 0, 0, 0.0
    for number, batch in enumerate(batches):
        count += len(batch)
        if number % LOOK == 0:
            looked = time.perf_counter()
            most = max(most, held_nbytes())
            looking_s += time.perf_counter() - looked
    end = time.perf_counter()
    return Reading(opened - start, end - begun - looking_s, count, most - base)


def make(root: Path, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """The same small pictures in every form; gives the section `data` of each by its name."""
    import datasets
    import pandas as pd

    draw = np.random.default_rng(seed)
    contents, names = [], []
    files = root / "files"
    for label in range(CLASSES):
        (files / f"class {label}").mkdir(parents=True)
    for number in range(count):
        file = io.BytesIO()
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        contents.append(file.getvalue())
        names.append(f"class {number % CLASSES}/{number:06d}.png")
        (files / names[-1]).write_bytes(contents[-1])
    captions = [json.dumps({"image": name, "caption": f"picture {name}"}) for name in names]
    (files / "captions.jsonl").write_text("\n".join(captions))
    questions = [{"image": name, "question": "what?", "answers": ["that"]} for name in names]
    (files / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "caption": f"picture {name}"}
            for number, name in enumerate(names)
        ],
    }
    (files / "coco.json").write_text(json.dumps(coco))
    table = pd.DataFrame({"image": names, "label": [name[:7] for name in names]})
    table.to_csv(files / "table.csv", index=False)
    table.to_parquet(files / "table.parquet")
    shards = root / "shards"
    shards.mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(shards / f"{first // SHARD:05d}.tar", "w") as tar:
            for number in range(first, min(count, first + SHARD)):
                for suffix, text in (
                    ("png", contents[number]),
                    ("cls", b"%d" % (number % CLASSES)),
                ):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text))
    (shards / "classnames.txt").write_text("\n".join(f"class {label}" for label in range(CLASSES)))
    columns = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "label": [number % CLASSES for number in range(count)],
    }
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=[f"class {label}" for label in range(CLASSES)]),
    }
    saved = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    saved.save_to_disk(str(root / "dataset"))
    return {
        title: {"source": source, "path": str(path)}
        for title, source, path in (
            ("image folder", "image_folder", files),
            ("CSV", "table", files / "table.csv"),
            ("Parquet", "table", files / "table.parquet"),
            ("captions, JSON Lines", "captions", files / "captions.jsonl"),
            ("captions as COCO", "captions", files / "coco.json"),
            ("questions, JSON Lines", "questions", files / "questions.jsonl"),
            ("dataset on disk", "datasets", root / "dataset"),
            ("webdataset", "webdataset", shards),
            ("webdataset by fsspec", "webdataset", shards.as_uri()),
        )
    }


def measured(
    pool: Pool, read: Callable[[dict[str, Any], list[int]], Reading], work: list[tuple[Any, ...]]
) -> Figures:
    """Samples a second, seconds to open, and bytes of all processes together."""
    found = pool.starmap(read, work, chunksize=1)
    rate = sum(one.count for one in found) / max(one.read_s for one in found)
    opened = max(one.opened_s for one in found)
    return rate, opened, sum(one.nbytes for one in found)


@click.command()
@click.option("--samples", default=100_000, show_default=True, help="Of each source.")
@click.option("--read", default=6_000, show_default=True, help="Samples that are read of them.")
@click.option("--repeats", default=3, show_default=True, help="Of each, in turn.")
@click.option("--seed", default=0, show_default=True, help="Of pictures and of the order.")
@click.option("--only", default="", help="Sources whose names contain this.")
def main(samples: int, read: int, repeats: int, seed: int, only: str) -> None:
    """Prints a row for each source: medians, bitfront's two workers beside a DataLoader's."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="sources-") as folder:
        sources = make(Path(folder), samples, seed)
        order = np.random.default_rng(seed).permutation(samples)[:read].tolist()
        header = (
            *("source", "samples a second", "DataLoader", "ratio"),
            *("open, s", "DataLoader", "MiB", "DataLoader"),
        )
        print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for title, settings in sources.items():
            if only not in title:
                continue
            ours, theirs = [], []
            for _ in range(repeats):
                # A process for each measurement: peaks of memory do not go down.
                with context.Pool(WORKERS, maxtasksperchild=1) as pool:
                    halves = [(settings, order[part::WORKERS]) for part in range(WORKERS)]
                    ours.append(measured(pool, read_here, halves))
                # A pool's processes may have no children of their own.
                theirs.append(alone(context, settings, order))
            print(row(title, ours, theirs), flush=True)


def row(title: str, ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """A source's line of the table: medians, the two rates with their range."""
    rates = []
    for found in (ours, theirs):
        each = [rate for rate, _, _ in found]
        rates.append(f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})")
    (rate, opened, nbytes), (other, other_opened, other_nbytes) = (
        [statistics.median(column) for column in zip(*found, strict=True)]
        for found in (ours, theirs)
    )
    cells = (
        *(title, *rates, f"{rate / other:.1f}", f"{opened:.2f}", f"{other_opened:.2f}"),
        *(f"{nbytes / 2**20:.0f}", f"{other_nbytes / 2**20:.0f}"),
    )
    return f"| {' | '.join(cells)} |"


def alone(
    context: multiprocessing.context.SpawnContext, settings: dict[str, Any], order: list[int]
) -> Figures:
    """The same of a DataLoader, in a process of its own."""
    queue: multiprocessing.Queue[Reading] = context.Queue()
    process = context.Process(target=put_reading, args=(queue, settings, order))
    process.start()
    found = queue.get()
    process.join()
    return found.count / found.read_s, found.opened_s, found.nbytes


def put_reading(
    queue: "multiprocessing.Queue[Reading]", settings: dict[str, Any], order: list[int]
) -> None:
    """Reads by a DataLoader, and tells what it took."""
    queue.put(read_by_torch(settings, order))


if __name__ == "__main__":
    main()
