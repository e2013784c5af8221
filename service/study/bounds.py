"""The learned bounds of the vision tower's inputs that a database holds for a job."""

from bitfront.identity.identities import Identities
from bitfront.identity.keys import bounds_key, bounds_key_without_batches
from bitfront.spec import JobSpec
from storage.store import Store


def stored_bounds(store: Store, spec: JobSpec, identities: Identities) -> dict[str, object] | None:
    """The bounds as JSON content; None where none were learned yet.

    Args:
        store: The database.
        spec: The job; it has `profile.vision`.
        identities: Of its model and data.
    """
    keys = (bounds_key(spec, identities), bounds_key_without_batches(spec, identities))
    known = store.stage_artefacts(keys)
    return next((known[key] for key in keys if key in known), None)
