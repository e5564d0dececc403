"""The service conforms to its OpenAPI document: schemathesis against a real process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

from support.live import live_service
from vidlex.service.access.api_keys import new_key
from vidlex.service.http.openapi.errors import ERRORS

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
HEALTH = ["get_liveness", "get_readiness", "get_metrics"]
# Without invalid requests: identifiers are arbitrary text.
ALWAYS_VALID = ["list_keys", "revoke_key", "get_models", "activate_model", "rollback_model", *HEALTH]
NUM_EXAMPLES = 4
ADMIN = new_key()[1]
KEY = {"X-API-Key": ADMIN}


@dataclass(frozen=True)
class Service:
    url: str
    log: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "keys").write_text(f"{ADMIN} scope=admin\n")
    environment = {
        "VIDLEX_DECODE_WORKERS": "1",
        "VIDLEX_API_KEYS_FILE": str(folder / "keys"),
        "VIDLEX_RATE_LIMIT_PER_SECOND": "0",
    }
    with live_service(folder / "data", **environment) as url:
        yield Service(url, folder / "data.log")


VALID = [(name, GenerationMode.POSITIVE) for name in ERRORS]
INVALID = [(name, GenerationMode.NEGATIVE) for name in ERRORS if name not in ALWAYS_VALID]


@pytest.mark.parametrize(("name", "mode"), [*VALID, *INVALID])
def test_responses_conform_to_the_document(service: Service, name: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=KEY)
    operation = schema.find_operation_by_id(name)
    codes = operation.definition.raw["x-error-codes"]
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
        if use_known and name != "delete_label" and "label_id" in (case.path_parameters or {}):
            case.path_parameters["label_id"] = known
            case.headers.pop("X-Vidlex-Namespace", None)
        response = case.call_and_validate(checks=CHECKS, headers=KEY)
        if response.status_code >= 400 and name not in HEALTH:
            assert response.json()["code"] in codes

    send()
    assert httpx.get(f"{service.url}/readyz", timeout=60, trust_env=False).status_code == 200
    assert '"internal_error"' not in service.log.read_text()
