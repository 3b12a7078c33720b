"""What is wrong and where, in our words: pydantic's findings without any value of the input.

The only room that reads a ValidationError, whose own text echoes what was sent. Member names are
told only when they were declared: what a stranger sends is not repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from broker.errors import Fault

UNTOLD = "\0"
"""Begins a step of pydantic's that is no member: which variant was tried."""


def pointer(*steps: str | int) -> str:
    """A JSON Pointer (RFC 6901) of these steps."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def faults_of(
    exc: ValidationError, at: str = "", declared: Collection[str] | None = None
) -> list[Fault]:
    """pydantic's findings in our words, each place once, without any value of the input.

    With `declared`, the input is a stranger's, and members that were not declared go unnamed.
    """
    found: dict[tuple[str, str], None] = {}
    for error in exc.errors(include_url=False, include_context=True, include_input=False):
        steps = [str(step) for step in error["loc"] if not str(step).startswith(UNTOLD)]
        if error["type"] == "extra_forbidden" and declared is not None:
            names = ", ".join(declared) if len(steps) == 1 else ""
            hint = f"; declared: {names}" if names else "; none declared" if len(steps) == 1 else ""
            fault = (at + pointer(*steps[:-1]), "has a member that is not declared" + hint)
        else:
            fault = (at + pointer(*steps), _reason(error))
        found[fault] = None
    return [Fault(*fault) for fault in found]


_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a known key",
    "model_type": "must be a mapping",
    "typed_dict_type": "must be an object",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_pattern_mismatch": "does not have the form that is asked for",
    "union_tag_invalid": "is not one of the known types",
    "union_tag_not_found": "does not say which of the known types it is",
}


def _reason(error: ErrorDetails) -> str:
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["msg"]).split(", ", 1)[-1]
    if error["type"] in _WORDS:
        return _WORDS[error["type"]]
    return str(error["msg"]).replace("Input should be", "must be").replace("String should", "must")


def secret_hint(faults: Sequence[Fault], secrets: Sequence[str]) -> list[Fault]:
    """Says what to write where a secret was given inline or in another form than a reference."""
    text = "a secret is given as {file: PATH} or {env: NAME}, never inline"
    return [
        Fault(f.pointer, text)
        if f.reason == "must be a mapping" and f.pointer.rsplit("/", 1)[-1] in secrets
        else f
        for f in faults
    ]
