"""The JSON schema of a job file, made from the specification; a copy lies beside this file."""

from pathlib import Path
from typing import Final

from bitfront.spec import JobSpec

SCHEMA_FILE: Final = Path(__file__).parent / "job.schema.json"
"""The copy, for editors; a test holds it against `job_schema`."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, object]:
    """The schema: keys, types, choices and ranges, with what each section means.

    Rules between keys, and all that needs a look at data or model, are beyond it.
    """
    found = JobSpec.model_json_schema(mode="validation")
    return {"$schema": _DIALECT, **found, "title": "A search job of bitfront"}
