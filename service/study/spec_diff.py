"""What a resumed study is given that differs from what it was started with."""

import json
from collections.abc import Iterator, Mapping, Sequence

from bitfront.errors import ChangedJob
from bitfront.identity.decisions import DECISIONS, Key
from bitfront.spec import JobSpec
from storage.records import Difference, Lease
from storage.store import Store

MODEL_PARTS = frozenset({"weights", "tokenizer", "preprocessing", "config"})
# How long a study runs, on how many workers, and who is told of it changes no result.
_FREE = ("stop.", "tracking.", "search.workers", "search.gpus_per_worker", "search.max_attempts")


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
    changes_results = any(_changes_results(line.partition(" ")[0]) for line in differences)
    store.replace_spec(lease, spec, changes_results=changes_results)


def _changes_results(field: str) -> bool:
    decision = DECISIONS.get(field)
    return decision is not None and Key.EVALUATION in decision.keys


def result_differences(
    differences: Sequence[Difference], results: Mapping[str, str]
) -> tuple[str, ...]:
    """A line for each difference that results depend on, as a person would look for it.

    The model's own hash is left out where one of its parts is named.

    Args:
        differences: What differs from the record, in whatever way.
        results: What results depend on, by name, as it was found.
    """
    found = [difference for difference in differences if difference.name in results]
    named = [difference for difference in found if difference.name != "model"]
    if any(difference.name in MODEL_PARTS for difference in named):
        found = named
    return tuple(line for one in found for line in _lines(one, results.get("weights", "")))


def _lines(difference: Difference, weights: str) -> list[str]:
    """One line, or one for each setting where a row holds several."""
    if difference.name == "model" and difference.recorded == weights:
        return ["its version of bitfront did not record the tokenizer and the preprocessing"]
    try:
        before, after = (json.loads(text) for text in (difference.recorded, difference.found))
    except ValueError:
        return [str(difference)]
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [str(difference)]
    prefix = f"{difference.name}."
    return list(_compared(dict(_fields(before, prefix)), dict(_fields(after, prefix))))


def spec_differences(stored: JobSpec, found: JobSpec) -> tuple[str, ...]:
    """A line for each field that differs, such as `search.seed was 0, is 1`."""
    before = dict(_fields(stored.model_dump(mode="json")))
    after = dict(_fields(found.model_dump(mode="json")))
    return _compared(before, after)


def _compared(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
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
