"""Properties of the OpenAPI document, in place of the linters, which need npm (see `make lint-openapi`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from support.paths import ROOT
from support.serving import settings_for
from vidlex.service.app import create_app
from vidlex.service.errors import FetchFailed, MethodNotAllowed, NoApiKeys, VidlexError
from vidlex.service.http.openapi.errors import ERRORS
from vidlex.service.http.openapi.examples import REQUEST_EXAMPLES, RESPONSE_EXAMPLES
from vidlex.service.http.openapi.headers import RESPONSE_HEADERS

OPERATION_IDS = {
    "create_labels", "list_labels", "get_label", "update_label", "delete_label", "get_label_card", "preview_labels",
    "classify_video",
    "create_job", "list_jobs", "get_job", "cancel_job", "retry_job",
    "export_job", "get_job_result", "get_job_output", "get_job_errors", "stream_job_events",
    "list_videos", "get_video", "delete_video", "get_video_features", "get_video_thumbnail",
    "search_videos", "backfill_videos", "reencode_videos", "get_video_generations", "list_label_videos",
    "create_webhook_secret", "list_webhook_secrets", "delete_webhook_secret", "test_webhook",
    "list_deliveries", "get_delivery", "replay_delivery", "replay_deliveries", "list_endpoints", "enable_endpoint",
    "get_calibration", "put_calibration", "delete_calibration",
    "create_feedback", "list_feedback", "delete_feedback",
    "list_judged_labels", "get_fit", "apply_threshold", "revert_threshold", "list_threshold_versions",
    "get_models", "prepare_model", "activate_model", "rollback_model", "drop_model", "diff_models",
    "create_key", "list_keys", "revoke_key",
    "get_liveness", "get_readiness", "get_metrics",
}  # fmt: skip
IN_NAMESPACE = {name for name in OPERATION_IDS if "label" in name or "calibration" in name}
IN_NAMESPACE |= {"classify_video", "diff_models"}
IN_NAMESPACE |= {name for name in OPERATION_IDS if "job" in name or "video" in name}
WEBHOOK_WORDS = ("webhook", "deliver", "endpoint")
IN_NAMESPACE |= {name for name in OPERATION_IDS if any(word in name for word in WEBHOOK_WORDS)}
IN_NAMESPACE |= {name for name in OPERATION_IDS if any(word in name for word in ("feedback", "fit", "threshold"))}
PUBLIC = {"get_liveness", "get_readiness"}
VALUES = ("default", "const", "enum", "example", "examples", "value")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(settings_for(tmp_path_factory.mktemp("document"))).openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {operation["operationId"]: operation for _, _, operation in all_operations(document)}


def all_operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def nodes(node: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document with its JSON pointer, except those inside examples and other values."""
    if isinstance(node, dict):
        yield pointer, node
        for key, value in node.items():
            if key not in VALUES or pointer.endswith("/properties"):
                yield from nodes(value, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, f"{pointer}/{index}")


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return resolve(document, found)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def test_operations_have_readable_ids(operations: dict[str, Any]) -> None:
    assert set(operations) == OPERATION_IDS == set(ERRORS)


def test_general_information_is_complete(document: dict[str, Any]) -> None:
    info = document["info"]
    assert document["openapi"].startswith("3.1.")
    assert info["license"]["identifier"] == "Apache-2.0"
    assert all(info[member] for member in ("title", "summary", "description", "version", "contact"))
    assert [server["url"] for server in document["servers"]] == ["/", "/v1"]
    assert all(server["description"] for server in document["servers"])


def test_tags_are_declared_described_and_used(document: dict[str, Any], operations: dict[str, Any]) -> None:
    assert all(tag["description"] for tag in document["tags"])
    declared = [tag["name"] for tag in document["tags"]]
    background = ["jobs", "videos", "calibration", "feedback", "webhooks"]
    assert declared == ["labels", "classify", *background, "models", "keys", "health"]
    assert {tag for operation in operations.values() for tag in operation["tags"]} == set(declared)


def test_every_operation_is_described(operations: dict[str, Any]) -> None:
    for name, operation in operations.items():
        assert operation["summary"] and operation["description"] and len(operation["tags"]) == 1, name
        assert not operation["summary"].endswith("."), name
        assert "security" in operation, name
        statuses = set(operation["responses"])
        assert any(status.startswith("2") for status in statuses), name
        assert any(status.startswith("4") for status in statuses), name
        assert "default" not in statuses, name


def test_every_parameter_response_and_header_is_described(document: dict[str, Any]) -> None:
    for _, path, operation in all_operations(document):
        for parameter in operation.get("parameters", ()):
            assert resolve(document, parameter)["description"], (path, parameter)
        for status, response in operation["responses"].items():
            described = resolve(document, response)
            assert described["description"] not in ("", "Successful Response"), (path, status)
            for name, header in described.get("headers", {}).items():
                assert resolve(document, header)["description"], (path, status, name)


def test_every_component_and_property_is_described(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
    num_properties = 0
    for pointer, node in nodes(document):
        if pointer.rpartition("/")[2] != "properties":
            for name, member in node.get("properties", {}).items():
                num_properties += 1
                assert member.get("description"), f"{pointer}/{name}"
    assert num_properties > 150


def test_generated_titles_are_absent(document: dict[str, Any]) -> None:
    titled = [pointer for pointer, node in nodes(document) if isinstance(node.get("title"), str)]
    assert titled == ["/info"]


def test_every_reference_resolves_and_every_component_is_used(document: dict[str, Any]) -> None:
    references = {node["$ref"] for _, node in nodes(document) if isinstance(node.get("$ref"), str)}
    for reference in references:
        assert resolve(document, {"$ref": reference}), reference
    for kind, components in document["components"].items():
        if kind != "securitySchemes":
            assert {f"#/components/{kind}/{name}" for name in components} <= references


def test_every_schema_is_valid(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert validator(document, schema), name


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    num_examples = 0
    for pointer, node in nodes(document):
        schema = node.get("schema", node)
        examples = node.get("examples", [])
        values = [example["value"] for example in examples.values()] if isinstance(examples, dict) else examples
        for value in values:
            num_examples += 1
            errors = list(validator(document, schema).iter_errors(value))
            assert not errors, f"{pointer}: {errors[0]}"
    assert num_examples > 150


def test_every_json_body_has_an_example(document: dict[str, Any]) -> None:
    used: set[Any] = set()
    for _, path, operation in all_operations(document):
        name = operation["operationId"]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "examples" in content:
                used.add(name)
            else:
                params = content["schema"]["properties"]["params"]
                assert resolve(document, params)["examples"], path
        for status, response in operation["responses"].items():
            for content in resolve(document, response).get("content", {}).values():
                assert content["examples"], (path, status)
                used.add((name, status))
    assert used >= set(REQUEST_EXAMPLES) | set(RESPONSE_EXAMPLES)


def test_errors_are_shared_responses_with_one_schema(document: dict[str, Any], operations: dict[str, Any]) -> None:
    for name, operation in operations.items():
        for status, response in operation["responses"].items():
            if status >= "400" and (name, status) != ("get_readiness", "503"):
                assert response.keys() == {"$ref"}, (name, status)
    codes: set[str] = set()
    for response in document["components"]["responses"].values():
        (content,) = response["content"].values()
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert all(f"`{code}`" in response["description"] for code in content["examples"])
        codes |= set(content["examples"])
    # Of the start, of no documented operation, and of jobs.
    undocumented = (NoApiKeys, MethodNotAllowed, FetchFailed)
    assert codes == {error.code for error in _with_code(VidlexError) if error not in undocumented} | {"internal_error"}
    assert codes == {code for operation in operations.values() for code in operation["x-error-codes"]}


def _with_code(error: type[VidlexError]) -> list[type[VidlexError]]:
    below = [
        found for kind in error.__subclasses__() if kind.__module__ == error.__module__ for found in _with_code(kind)
    ]
    return [error, *below] if "code" in vars(error) else below


def test_batch_items_are_typed(document: dict[str, Any]) -> None:
    for batch, good, bad in (("LabelBatch", "label", "LabelFailure"), ("CardBatch", "card", "CardFailure")):
        items = document["components"]["schemas"][batch]["properties"]["data"]["items"]
        result, failure = (resolve(document, option)["properties"] for option in items["oneOf"])
        assert "$ref" in result[good] and result["error"]["type"] == "null"
        assert failure["error"]["$ref"].endswith("/Problem") and failure[good]["type"] == "null"
        assert bad in document["components"]["schemas"]


def test_every_operation_declares_its_security(document: dict[str, Any], operations: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["api_key"]["type"], schemes["api_key"]["name"]) == ("apiKey", "X-API-Key")
    for name, operation in operations.items():
        if name in PUBLIC:
            assert operation["security"] == [] and "x-scope" not in operation
        else:
            # The empty alternative is for services without keys.
            assert operation["security"] == [{"bearer": []}, {"api_key": []}, {}]
            assert f"`{operation['x-scope']}`" in operation["description"]
    scopes = {name: operation.get("x-scope") for name, operation in operations.items()}
    assert (scopes["classify_video"], scopes["create_labels"], scopes["create_key"]) == ("read", "write", "admin")


def test_request_headers_are_declared_where_they_work(document: dict[str, Any], operations: dict[str, Any]) -> None:
    found: dict[str, set[str]] = {}
    for name, operation in operations.items():
        for parameter in operation.get("parameters", ()):
            declared = resolve(document, parameter)
            if declared["in"] == "header":
                found.setdefault(declared["name"], set()).add(name)
    assert found == {
        "X-Vidlex-Namespace": IN_NAMESPACE,
        "Idempotency-Key": {"create_labels", "create_job", "backfill_videos", "reencode_videos"},
        "If-Match": {"update_label", "delete_label", "apply_threshold", "revert_threshold"},
        "If-None-Match": {"get_label", "get_job"},
        "Prefer": {"classify_video", "get_job"},
        "Last-Event-ID": {"stream_job_events"},
        "X-Vidlex-Deadline-Ms": {"classify_video"},
    }


def test_response_headers_are_declared_where_they_are_sent(
    document: dict[str, Any], operations: dict[str, Any]
) -> None:
    def headers(name: str, status: str) -> set[str]:
        return set(resolve(document, operations[name]["responses"][status])["headers"])

    limits = {"RateLimit", "RateLimit-Policy"}
    for name, operation in operations.items():
        for status in operation["responses"]:
            assert "X-Request-Id" in headers(name, status)
            if name not in PUBLIC and status != "401":
                assert limits <= headers(name, status)
            if status in ("429", "503"):
                assert "Retry-After" in headers(name, status)
    written = {"ETag", "Location", "Idempotency-Replayed"}
    assert headers("create_labels", "201") >= written and headers("create_labels", "200") >= written
    assert all("ETag" in headers(*of) for of in (("get_label", "200"), ("get_label", "304"), ("update_label", "200")))
    assert "X-Vidlex-Revision" in headers("delete_label", "204")
    assert "WWW-Authenticate" in headers("list_labels", "401")
    assert set(document["components"]["headers"]) == set(RESPONSE_HEADERS)


def test_document_is_printed_without_a_service(document: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.print_openapi"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment())
    assert json.loads(done.stdout) == document


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT / ".package"), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
