"""A server that speaks S3, for tests of what lies in buckets."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import s3fs
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer


@contextmanager
def served_bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server with one bucket; s3fs finds it by the environment, as it would S3."""
    running = ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    try:
        yield running
    finally:
        running.stop()
        moto_api_backend.reset()
        s3fs.S3FileSystem.clear_instance_cache()
