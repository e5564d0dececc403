"""The service keeps to its own OpenAPI document, whatever is sent: schemathesis against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vidlex.service.access.api_keys import new_key
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.errors import NoApiKeys, VidlexError
from vidlex.service.http.openapi import ERRORS

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = [*ERRORS, ("get", "/livez"), ("get", "/readyz"), ("get", "/metrics")]
ANYTHING_GOES = [
    ("get", "/labels/{label_id}"),
    ("delete", "/labels/{label_id}"),
    ("get", "/labels/{label_id}/card"),
    ("get", "/keys"),
    ("delete", "/keys/{key_id}"),
    ("get", "/models"),
    ("post", "/models:activate"),
    ("post", "/models:rollback"),
]
"""Nothing of these is unsound by the document: any text may be an identifier, and some take nothing."""
NUM_EXAMPLES = 4
ADMIN = new_key()[1]
KEY = {"X-API-Key": ADMIN}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "keys").write_text(f"{ADMIN} scope=admin\n")
    with live_service(
        folder / "data", decode_workers=1, api_keys_file=folder / "keys", rate_limit_per_second=0
    ) as service:
        yield service


@pytest.fixture(scope="module")
def document(service: LiveService) -> dict[str, dict[str, dict[str, object]]]:
    answer = httpx.get(f"{service.url}/openapi.json", headers=KEY, timeout=60).json()
    paths: dict[str, dict[str, dict[str, object]]] = answer["paths"]
    return paths


def test_every_operation_is_tried(document: dict[str, dict[str, dict[str, object]]]) -> None:
    assert {(method, path) for path, methods in document.items() for method in methods} == set(OPERATIONS)


def test_every_operation_tells_the_key_that_it_wants(service: LiveService) -> None:
    document = httpx.get(f"{service.url}/openapi.json", headers=KEY, timeout=60).json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    scopes = {
        (method, path): operation.get("x-scope")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    for (method, path), scope in scopes.items():
        assert document["paths"][path][method]["security"] == ([] if scope is None else [{"bearer": []}, {}])
    assert scopes["get", "/livez"] is None and scopes["post", "/classify"] == "read"
    assert scopes["post", "/labels"] == "write" and scopes["post", "/keys"] == "admin"


def test_every_error_of_the_table_can_come_somewhere(document: dict[str, dict[str, dict[str, object]]]) -> None:
    text = json.dumps(document)
    assert [e.code for e in _leaves(VidlexError) if e is not NoApiKeys and f'"{e.code}"' not in text] == []


def _leaves(error: type[VidlexError]) -> list[type[VidlexError]]:
    below = [leaf for kind in error.__subclasses__() if kind.__module__ == error.__module__ for leaf in _leaves(kind)]
    return below or [error]


SOUND = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
UNSOUND = [(*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS[:-3] if operation not in ANYTHING_GOES]


@pytest.mark.parametrize(("method", "path", "mode"), [*SOUND, *UNSOUND])
def test_answers_are_those_of_the_document(service: LiveService, method: str, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=KEY)
    operation = schema[path][method.upper()]
    with httpx.Client(base_url=service.url, headers=KEY, timeout=60, trust_env=False) as client:
        known = client.post("/labels", json={"name": "red"}, params={"if_exists": "return"}).json()["id"]

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), use_known=st.booleans())
    def send(case: schemathesis.Case, use_known: bool) -> None:
        if use_known and method != "delete" and "label_id" in (case.path_parameters or {}):
            case.path_parameters["label_id"] = known
        case.call_and_validate(checks=CHECKS, headers=KEY)

    send()
    assert service.is_ready()
    assert service.log_lines('"internal_error"') == 0
