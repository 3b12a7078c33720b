"""Kinds of value that configuration, presets and requests are made of, as pydantic reads them.

Strict without exception: unknown members refused, nothing coerced.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import core_schema

from broker.holes import Template, is_template
from broker.schedule import parse_duration


class Strict(BaseModel):
    """Base of everything read from outside: unknown members refused, values frozen, no coercion."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True
    )


class SecretRef(Strict):
    """Where a secret is: a file or an environment variable, never the value itself."""

    file: str | None = Field(default=None, min_length=1, description="path of a file")
    env: str | None = Field(default=None, min_length=1, description="name of a variable")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("give exactly one of file and env")
        return self

    @property
    def source(self) -> str:
        """For logs, metrics and faults."""
        return f"file:{self.file}" if self.file else f"env:{self.env}"


def _duration(value: object) -> timedelta:
    if not isinstance(value, str):
        raise ValueError("a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d")  # noqa: TRY004  (pydantic lets a TypeError through)
    return parse_duration(value)


_DURATION_SCHEMA = {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$"}
Duration = Annotated[timedelta, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]


class OneOrMany:
    """Marks a list that may be written as its only item."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, list) else [value], handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        many = handler(schema)
        return {"anyOf": [many, many["items"]]}


class Holes:
    """Marks a type in whose place a text with holes may stand; the text becomes a Template."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        def read(value: object, inner: Any) -> object:
            return (
                Template(value) if isinstance(value, str) and is_template(value) else inner(value)
            )

        return core_schema.no_info_wrap_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": r"\$\{"}]}
