"""Whatever fits the OpenAPI description or does not: an answer as described, and never a 500."""

from pathlib import Path
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.database_url import file_url
from storage.store import open_store
from tests.support.served import served

Operation = APIOperation[Any, Any, Any, Any]
HOST: Final = {"host": "localhost"}
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
QUIETLY: Final = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def ask(operation: Operation) -> set[int]:
    """Asks for an operation in many ways, and checks each answer; the statuses that came."""
    statuses: set[int] = set()
    kinds = [
        operation.as_strategy(generation_mode=mode)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]

    @QUIETLY
    @given(
        case=st.one_of(kinds),
        is_known=st.booleans(),
        is_plain=st.booleans(),
        number=st.integers(0, 4),
    )
    def check(case: Case[Any], is_known: bool, is_plain: bool, number: int) -> None:
        if is_known:
            known = {"study": "digits", "number": number}
            parameters = dict(case.path_parameters or {})
            case.path_parameters = {name: known.get(name, parameters[name]) for name in parameters}
        if is_plain:
            case.query = {}
        response = case.call(headers=HOST)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    return statuses


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", client.app, headers=HOST)
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        reads = {found.label: ask(found) for found in operations if found.method == "get"}
        # From here on somebody runs the study, so that no driver is started for it.
        with open_store(file_url(tmp_path / "studies.db")) as store:
            store.acquire("digits", "another", 600)
        changes = {found.label: ask(found) for found in operations if found.method != "get"}

    assert (len(reads), len(changes)) == (15, 6)
    assert {409} <= changes["DELETE /api/v1/studies/{study}"]
    assert {409, 422} <= changes["POST /api/v1/studies/{study}/resume"]
    artefact = "GET /api/v1/studies/{study}/artefacts/{artefact}"
    assert [label for label, found in reads.items() if 200 not in found] == [artefact]
