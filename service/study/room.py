"""Whether a study can fit: the memory of its model at least, and the disk of its database."""

import os
import shutil
from pathlib import Path
from typing import Final

from bitfront.errors import InvalidModel, SpecError
from bitfront.job import CHECKPOINT_SUFFIXES
from bitfront.spec import LOCAL_FOLDER, JobSpec, ModelSpec
from bitfront.units import size_text

# A trial's configuration, figures, attempts and log lines for a model of some hundred layers.
_TRIAL_NBYTES: Final = 20_000


def check_memory(spec: ModelSpec) -> None:
    """Refuses a model whose weights alone are larger than the machine's memory.

    Raises:
        InvalidModel: They are. A model that lies on no disk here is not looked at, nor one that
            goes to a GPU.
    """
    if spec.device not in ("auto", "cpu"):
        return
    needed = _weights_nbytes(spec)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InvalidModel(
            f"model.name: the weights take {size_text(needed)}, and this machine has "
            f"{size_text(there)} of memory: use a smaller model or a larger machine"
        )


def check_disk(spec: JobSpec, folder: Path) -> None:
    """Refuses a study whose trials alone fill the disk that its database lies on.

    Raises:
        SpecError: They do.
    """
    needed = trials_nbytes(spec)
    while not folder.exists():
        folder = folder.parent
    total, _, free = shutil.disk_usage(folder)
    if total and needed > free:  # a file system without a size holds no files
        raise SpecError(
            f"stop.trials: {spec.stop.trials:,} trials take about {size_text(needed)}, and the "
            f"disk of {folder} has {size_text(free)} left: free some, ask for fewer trials, or "
            "name a database elsewhere with --db"
        )


def trials_nbytes(spec: JobSpec) -> int:
    """What the trials of a study take in its database, estimated."""
    return _TRIAL_NBYTES * spec.stop.trials


def _weights_nbytes(spec: ModelSpec) -> int:
    """The bytes of the files of weights that a model names on this machine; 0 without any."""
    named = Path(spec.weights or spec.name.removeprefix(LOCAL_FOLDER)).expanduser()
    try:
        if named.is_file():
            return named.stat().st_size
        files = [file for file in named.iterdir() if file.suffix.lower() in CHECKPOINT_SUFFIXES]
        # The same weights may lie there in several forms.
        sizes = dict.fromkeys(CHECKPOINT_SUFFIXES, 0)
        for file in files:
            sizes[file.suffix.lower()] += file.stat().st_size
    except OSError:
        return 0
    return min((size for size in sizes.values() if size), default=0)
