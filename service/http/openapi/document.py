"""The OpenAPI document: completes what FastAPI derives from the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vidlex.service.http.guard import PUBLIC_PATHS, required_scope
from vidlex.service.http.openapi.errors import error_codes, error_refs, response_components
from vidlex.service.http.openapi.examples import REQUEST_EXAMPLES, RESPONSE_EXAMPLES
from vidlex.service.http.openapi.headers import PARAMETERS, RESPONSE_HEADERS, header_refs
from vidlex.service.http.openapi.info import INFO, SECURITY_SCHEMES
from vidlex.service.schemas.calibration import CalibrationBody
from vidlex.service.schemas.cards import PreviewBatchBody
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.schemas.feedback import JudgementBatchBody, JudgementBody
from vidlex.service.schemas.jobs import NewJobBody, UploadedJobBody
from vidlex.service.schemas.keys import NewKeyBody
from vidlex.service.schemas.labels import LabelBatchBody, LabelChangesBody, NewLabelBody
from vidlex.service.schemas.models import DropModelBody, PrepareModelBody
from vidlex.service.schemas.video_search import BackfillBody, ReencodeBody, VideoSearchBody
from vidlex.service.schemas.webhooks import EnableEndpointBody, ReplayBody, WebhookTestBody

_SCHEMAS = "#/components/schemas/"
_BODIES = (
    NewLabelBody,
    LabelBatchBody,
    LabelChangesBody,
    PreviewBatchBody,
    ClassifyParams,
    NewJobBody,
    UploadedJobBody,
    NewKeyBody,
    PrepareModelBody,
    DropModelBody,
    CalibrationBody,
    VideoSearchBody,
    BackfillBody,
    ReencodeBody,
    WebhookTestBody,
    ReplayBody,
    EnableEndpointBody,
    JudgementBody,
    JudgementBatchBody,
)
_VALUES = ("default", "const", "enum", "examples")  # keywords that contain values, not schemas


def json_body(*models: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its JSON body itself. ``models`` must be in ``_BODIES``."""
    refs = [schema_ref(model) for model in models]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schema_ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}


def install(app: FastAPI) -> None:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(get_openapi(**INFO, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.add_api_route("/v1/openapi.json", document, include_in_schema=False)


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document["components"]
    _, bodies = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_SCHEMAS + "{model}")
    components["schemas"] |= bodies["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(method, path, operation)
    names = frozenset(components["schemas"])
    document["paths"] = _tidy(document["paths"], names)
    document["components"] = {
        "schemas": {
            name.removesuffix("View"): _tidy_members(schema, names) for name, schema in components["schemas"].items()
        },
        "responses": response_components(),
        "parameters": PARAMETERS,
        "headers": RESPONSE_HEADERS,
        "securitySchemes": SECURITY_SCHEMES,
    }
    return document


def _complete_operation(method: str, path: str, operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    is_public = path in PUBLIC_PATHS
    for parameter in operation.get("parameters", ()):
        if "schema" in parameter:
            parameter["schema"].pop("description", None)  # the parameter has it
            _drop_null(parameter["schema"])
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == "application/json":
            content["examples"] = _examples(REQUEST_EXAMPLES[name])
    responses = operation["responses"]
    responses.pop("422", None)  # added by FastAPI; error_refs has the right one
    headers = header_refs("X-Request-Id", *(() if is_public else ("RateLimit", "RateLimit-Policy")))["headers"]
    for status, response in responses.items():
        response["headers"] = headers | response.get("headers", {})
        for content in response.get("content", {}).values():
            content["examples"] = _examples(RESPONSE_EXAMPLES[name, status])
    operation["responses"] = dict(sorted((error_refs(name) | responses).items()))
    operation["x-error-codes"] = error_codes(name)
    if is_public:
        operation["security"] = []
        return
    scope = required_scope(method.upper(), path)
    operation["description"] += f"\n\nRequires the scope `{scope}`."
    operation["x-scope"] = scope
    # The empty alternative is for services without keys.
    operation["security"] = [*({scheme: []} for scheme in SECURITY_SCHEMES), {}]


def _examples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}


def _drop_null(schema: dict[str, Any]) -> None:
    # A parameter is absent or a string, never null.
    for option in schema.pop("anyOf", ()):
        if option != {"type": "null"}:
            schema |= option


def _tidy(node: Any, components: frozenset[str]) -> Any:
    """Removes the suffix View, generated titles and defaults of constants; replaces repeated components by references.

    A choice between components becomes ``oneOf``, since they exclude each other.
    """
    if isinstance(node, str):
        return node.removesuffix("View") if node.startswith(_SCHEMAS) else node
    if isinstance(node, list):
        return [_tidy(item, components) for item in node]
    if not isinstance(node, dict):
        return node
    title = node.get("title")
    if isinstance(title, str) and title in components:
        return _tidy({"$ref": _SCHEMAS + title}, components)
    return _tidy_members(node, components)


def _tidy_members(node: dict[str, Any], components: frozenset[str]) -> dict[str, Any]:
    tidied = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "default" and ("const" in node or node.get("type") == "null"):
            continue
        is_choice = key == "anyOf" and all("$ref" in option for option in value)
        tidied["oneOf" if is_choice else key] = value if key in _VALUES else _tidy(value, components)
    return tidied
