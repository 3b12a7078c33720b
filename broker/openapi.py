"""The OpenAPI 3.1 document of the public API, made from the models that check the bodies.

Built once at load. Profile names are configuration and are not told here.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from broker import __version__
from broker.errors import problem_types
from broker.shapes import (
    AccessTokenAnswer,
    ActBody,
    CheckAnswer,
    HandleBody,
    MintBody,
    Problem,
    SessionAnswer,
)

_REF = "#/components/schemas/{model}"


def document() -> dict[str, Any]:
    """A valid OpenAPI 3.1 document."""
    models: list[type[BaseModel]] = [
        MintBody, HandleBody, ActBody, SessionAnswer, CheckAnswer, AccessTokenAnswer,
        Problem,
    ]  # fmt: skip
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "token-broker",
            "version": __version__,
            "description": "Short-lived session tokens for browser components.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"session": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas["$defs"],
            "responses": {"Problem": _problem_response()},
            "parameters": {"IdempotencyKey": _IDEMPOTENCY_KEY, "CacheControl": _CACHE_CONTROL},
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey", "in": "cookie", "name": "session",
                    "description": "the application's own cookie, with a forward_auth caller",
                },
            },
        },
    }  # fmt: skip


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "description": "the same key, caller and body get the same session",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}  # fmt: skip
_CACHE_CONTROL = {
    "name": "Cache-Control", "in": "header", "required": False,
    "description": "min-fresh=N: at least N seconds of life left, or a problem (RFC 9111)",
    "schema": {"type": "string"},
}  # fmt: skip
_HEADERS = {
    "ETag": {"description": "of this version (RFC 9110)", "schema": {"type": "string"}},
    "CacheStatus": {"description": "RFC 9211", "schema": {"type": "string"}},
    "RequestId": {"description": "of this request", "schema": {"type": "string"}},
}


_OPEN = {
    "description": "A JSON object",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def _problem_response() -> dict[str, Any]:
    slugs = [f"urn:token-broker:problem:{kind.slug}" for kind in problem_types()]
    return {
        "description": "A problem (RFC 9457). Types: " + ", ".join(slugs),
        "content": {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}},
    }


def _paths() -> dict[str, Any]:
    session = _answer("SessionAnswer", "A session")
    sessions = {"201": session, "202": session}
    return {
        "/v1/profiles/{profile}/sessions": _operation(
            "mint", "Mint a component session", sessions, body="MintBody", required=False,
            parameters=[_in_path("profile"), _ref("IdempotencyKey"), _ref("CacheControl")],
        ),
        "/v1/sessions/rotate": _operation(
            "rotate", "Mint the successor of a live session", sessions, body="HandleBody",
            parameters=[_ref("CacheControl")],
        ),
        "/v1/sessions/check": _operation(
            "check", "Seconds that a session has left",
            {"200": _json("CheckAnswer", "What is left")}, body="HandleBody",
        ),
        "/v1/sessions/end": _operation(
            "end", "End a chain", {"204": {"description": "Ended"}}, body="HandleBody"
        ),
        "/v1/sessions/actions/{action}": _operation(
            "act", "A follow-up call about a live session", body="ActBody",
            responses={
                "200": _OPEN, "201": _OPEN, "202": _OPEN, "204": {"description": "Done"},
            },
            parameters=[_in_path("action")],
        ),
        "/v1/access-tokens/{credential}": _operation(
            "access_token", "The access token of a credential, for a service",
            {"200": _answer("AccessTokenAnswer", "An access token")}, method="get",
            parameters=[_in_path("credential"), _ref("CacheControl")],
        ),
        "/v1/callbacks/{profile}": _operation(
            "callback", "What an upstream posts; verified, never believed",
            {"204": {"description": "Taken"}}, parameters=[_in_path("profile")], body="object",
            security=[],
        ),
        **_public_paths(),
    }  # fmt: skip


def _public_paths() -> dict[str, Any]:
    """What is the same for everybody."""
    return {
        "/v1/client.js": _file("client", "The module for browsers", "text/javascript"),
        "/v1/client.d.ts": _file("client_types", "Its types, for editors", "text/plain"),
        "/v1/openapi.json": {
            "get": {
                "operationId": "openapi", "summary": "This document", "security": [],
                "responses": {"200": _OPEN},
            }
        },
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    responses: dict[str, Any],
    *,
    method: str = "post",
    body: str | None = None,
    required: bool = True,
    parameters: list[dict[str, Any]] | None = None,
    security: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """security: None is the document's own. body: a model's name, or `object` for any."""
    found: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {**responses, "default": {"$ref": "#/components/responses/Problem"}},
    }
    if parameters:
        found["parameters"] = parameters
    if security is not None:
        found["security"] = security
    if body:
        ref = {"$ref": _REF.format(model=body)}
        schema = {"type": "object"} if body == "object" else ref
        found["requestBody"] = {
            "required": required,
            "content": {"application/json": {"schema": schema}},
        }
    return {method: found}


def _file(name: str, summary: str, kind: str) -> dict[str, Any]:
    whole = {
        "description": "The file",
        "headers": {"ETag": {"$ref": "#/components/headers/ETag"}},
        "content": {kind: {"schema": {"type": "string"}}},
    }
    responses = {"200": whole, "304": {"description": "The same as that of If-None-Match"}}
    return _operation(name, summary, responses, method="get", security=[])


def _answer(model: str, description: str) -> dict[str, Any]:
    found = _json(model, description)
    found["headers"]["Cache-Status"] = {"$ref": "#/components/headers/CacheStatus"}
    return found


def _json(model: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=model)}}},
    }


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/parameters/{name}"}
