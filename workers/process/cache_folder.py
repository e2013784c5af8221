"""Where a machine keeps what it need not find out again."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def feature_folder() -> Path:
    """Where features go that memory has no room for: BITFRONT_CACHE, or the person's cache."""
    return _cache_folder() / "features"


def inspection_file() -> Path:
    """Where it is remembered which samples can be read."""
    return _cache_folder() / "inspected.db"


def latency_file() -> Path:
    """Where the times of kernels on this machine are remembered."""
    return _cache_folder() / "latencies.jsonl"


def _cache_folder() -> Path:
    return Path(os.environ.get("BITFRONT_CACHE") or user_cache_path("bitfront"))
