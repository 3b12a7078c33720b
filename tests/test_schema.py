"""The JSON Schema of the configuration: editors mark what `check` refuses, for every preset."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from broker.presets import load_preset, packaged
from broker.schema import json_schema
from tests.checkout import BROWSER, config, faults

FLOW: dict[str, Any] = {
    "source": None, "channel_data": None, "completion": None, "webhook_key": None,
    "parameters": {}, "billing": {"address": {"country": "GB"}},
    "success_url": "https://shop.example/a", "failure_url": "https://shop.example/b",
}  # fmt: skip


@functools.cache
def checker() -> Any:
    settings = {name: load_preset(name, Path()).settings.json_schema(name) for name in packaged()}
    return jsonschema.Draft202012Validator(json.loads(json.dumps(json_schema(settings))))


def refused(text: str) -> bool:
    return not checker().is_valid(json.loads(text))


def test_it_is_a_schema() -> None:
    """Of 2020-12, and every reference in it leads somewhere."""
    schema = checker().schema
    jsonschema.Draft202012Validator.check_schema(schema)

    def references(tree: Any) -> Iterator[str]:
        if isinstance(tree, dict):
            if isinstance(tree.get("$ref"), str):
                yield tree["$ref"]
            for one in tree.values():
                yield from references(one)
        elif isinstance(tree, list):
            for one in tree:
                yield from references(one)

    found = set(references(schema))
    assert found
    assert {one.removeprefix("#/$defs/") for one in found} <= schema["$defs"].keys()


@pytest.mark.parametrize(
    "text",
    [
        config(),
        config(allow_card_numbers=True),
        config(channel_data=BROWSER, parameters={"source": {"like": "source"}}),
        config(source={"type": "id", "id": "src_1"}, channel_data=None, parameters={}),
        config(amount="${claims.amount}", completion="${claims.end}"),
        config("checkout/flow", **FLOW),
        config("./own.yaml", anything={"goes": [1]}),
    ],
)
def test_what_is_good_is_taken(text: str) -> None:
    """Shorthand and holes included; an own preset's settings are not known here."""
    assert [error.json_path for error in checker().iter_errors(json.loads(text))] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": "6540"},
        {"amount": -1},
        {"currency": None},
        {"currency": "gbp"},
        {"completion": {"type": "hosted"}},
        {"completion": {"type": "hosted", "success_url": "https://a.example"}},
        {"completion": {"type": "elsewhere"}},
        {"completion": {}},
        {"completion": {"type": "non_hosted", "success_url": "https://a.example"}},
        {"source": {"type": "card", "number": "4242"}},
        {"source": {"type": "token"}},
        {"source": {"token": "tok_1"}},
        {"source": {"type": "token", "token": "t", "number": "4242424242424242"}},
        {"channel_data": {**BROWSER, "ip_address": "192.0.2.1"}},
        {"webhook_key": "inline"},
        {"secret_key": {"env": "SK"}},
        {"session_lifetime": 900},
        {"allow__trusted": "backend"},
        {"parameters__source": {"like": 5}},
        {"parameters__source": {"type": "string", "trusted": "yes"}},
    ],
)
def test_what_is_refused_is_marked(changes: dict[str, Any]) -> None:
    """What the broker refuses by its shape alone, an editor underlines."""
    text = config(**changes)
    assert faults(text)
    assert refused(text)


@pytest.mark.parametrize("name", packaged())
def test_each_setting_of_a_preset_is_described(name: str) -> None:
    """Each has a type of its own, and what it needs is required."""
    preset = load_preset(name, Path())
    schema = preset.settings.json_schema(name)
    assert schema["properties"].keys() == preset.file.settings.keys()
    needed = {n for n, one in preset.file.settings.items() if one.required}
    assert set(schema.get("required", [])) == needed
    for one in preset.file.settings.values():
        assert one.type
