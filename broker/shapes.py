"""The bodies of the public API, as the models that check them and the OpenAPI document shows.

One place, so that what is documented is what is enforced. Nothing else than shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_EXAMPLE_TIME = "2026-11-20T12:00:00Z"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MintBody(_Body):
    """What a mint may carry: only what the profile declares."""

    parameters: dict[str, Any] = Field(default={}, description="as the profile declares them")


HandleText = Annotated[
    str, Field(min_length=1, max_length=16384, description="the sealed handle of a session")
]


class HandleBody(_Body):
    """Shows a handle, to rotate or end its session."""

    handle: HandleText


class ActBody(_Body):
    """Shows a handle, with what the action asks for."""

    handle: HandleText
    data: dict[str, Any] = Field(default={}, description="as the action declares it")
    session_token: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        description="the session's own token, to make the call with in place of our credential",
    )


class SessionAnswer(BaseModel):
    """A session for a browser component."""

    profile: str
    session_token: str
    issued_at: str = Field(examples=[_EXAMPLE_TIME], json_schema_extra={"format": "date-time"})
    expires_at: str = Field(examples=[_EXAMPLE_TIME], json_schema_extra={"format": "date-time"})
    expires_in: int = Field(description="whole seconds left at the moment of answering")
    rotate_in: int | None = Field(default=None, description="seconds after which to rotate")
    handle: str | None = Field(default=None, description="sealed; for rotate, end and actions")
    reuse: Literal["per_caller", "shared", "single_use"] = Field(
        description="may the token be handed out again: to this caller, to anybody, or not at all"
    )
    output: Any = Field(description="what the component wants to be given")


class CheckAnswer(BaseModel):
    """What a session has left."""

    expires_in: int = Field(description="whole seconds left at the moment of answering; 0 is over")


class AccessTokenAnswer(BaseModel):
    """An access token for a service (RFC 6749 §5.1)."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str


class ProblemFault(BaseModel):
    pointer: str = Field(description="JSON Pointer into the request body")
    reason: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["urn:token-broker:problem:handle-expired"])
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="urn:uuid of the request id")
    retry_after: int | None = Field(default=None, description="seconds to wait")
    errors: list[ProblemFault] | None = None
