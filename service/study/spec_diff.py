"""What a resumed study is given other than it was started with."""

from collections.abc import Iterator, Mapping

from bitfront.errors import ChangedJob
from bitfront.spec import JobSpec
from storage.records import Lease
from storage.store import Store

# How long a study runs and on how many workers changes no result.
_FREE = ("stop.", "search.workers", "search.gpus_per_worker", "search.max_attempts")


def accept_spec(store: Store, lease: Lease, spec: JobSpec, *, accept_changes: bool) -> None:
    """Gives a resumed study its specification; one that changes results has to be accepted.

    Raises:
        ChangedJob: The specification differs, and changes are not accepted.
    """
    stored = store.study(lease.name).spec
    if stored == spec:
        return
    differences = spec_differences(stored, spec)
    if any(not line.startswith(_FREE) for line in differences) and not accept_changes:
        raise ChangedJob(lease.name, differences)
    store.replace_spec(lease, spec)


def spec_differences(stored: JobSpec, found: JobSpec) -> tuple[str, ...]:
    """A line for each field that differs, such as `search.seed was 0, is 1`."""
    before = dict(_fields(stored.model_dump(mode="json")))
    after = dict(_fields(found.model_dump(mode="json")))
    return tuple(
        f"{name} was {before.get(name)}, is {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def _fields(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
