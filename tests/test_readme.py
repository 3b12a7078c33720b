"""What exists is told: every setting, metric, problem, endpoint and room has its row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from broker.config import parse
from broker.errors import problem_types
from broker.file import CALLERS, ConfigFile, CredentialEntry, ProfileEntry
from broker.metrics import Metrics
from broker.openapi import document
from broker.presets import load_preset, packaged, parse_preset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _keys(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    nested = ("server", "outbound", "public", "ops", "allow", "rotation")
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner and name in nested:
            yield from _keys(f"{prefix}{name}.", inner[0])
        else:
            yield f"{prefix}{name}"


SETTINGS = [
    *_keys("", ConfigFile),
    *(key for kind in CALLERS.values() for key in _keys("callers.*.", kind)),
    *_keys("credentials.*.", CredentialEntry),
    *_keys("profiles.*.", ProfileEntry),
    *(name for preset in packaged() for name in load_preset(preset, ROOT).file.settings),
]


@pytest.mark.parametrize("key", sorted(set(SETTINGS)))
def test_every_setting_has_a_row(key: str) -> None:
    """The README tells of each key of the configuration file."""
    assert f"\n| `{key}` | " in README


def test_every_metric_has_a_row() -> None:
    """The README tells of each series, with its type and its labels; and of no other."""
    told = set(re.findall(r"^\| `(broker_\w+)` \| (\w+) \| ([\w, ]*) \|", README, re.MULTILINE))
    found = set()
    for family, names in Metrics().registry._collector_to_names.items():
        if any(name.startswith("broker_") for name in names):
            kind = family._type  # type: ignore[attr-defined]
            labels = ", ".join(family._labelnames)  # type: ignore[attr-defined]
            name = family._name + ("_total" if kind == "counter" else "")  # type: ignore[attr-defined]
            found.add((name, kind, labels))
    assert {(name, kind, labels.strip()) for name, kind, labels in told} == found


def test_every_problem_has_a_row() -> None:
    """The README tells of each problem type with its status, and of no other."""
    told = set(re.findall(r"^\| `([a-z-]+)` \| ([45]\d\d) \|", README, re.MULTILINE))
    assert told == {(kind.slug, str(kind.status)) for kind in problem_types()}


def test_every_endpoint_has_a_row() -> None:
    """The README tells of each path of the OpenAPI document."""
    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"| `{method.upper()} {path}` |" in README


def test_every_room_has_a_row() -> None:
    """The house's table names each module and package of the broker."""
    table = README[README.index("## The house") : README.index("## Glossary")]
    for path in (ROOT / "broker").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert f"`{path.name}`" in table, path.name
        elif path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in table, path.name


def test_the_example_configuration_is_good() -> None:
    """The configuration of the README loads as it stands."""
    example = next(
        block
        for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
        if "callers:" in block
    )
    snapshot = parse(example.encode(), ROOT)
    assert set(snapshot.profiles) == {"transactions"}
    assert yaml.safe_load(example).keys() == {
        "server", "keys", "callers", "credentials", "profiles",
    }  # fmt: skip


def test_the_checkout_example_is_good() -> None:
    """The 3-D Secure profile of the README loads beside the example's callers and credentials."""
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    example = yaml.safe_load(next(block for block in blocks if "callers:" in block))
    profile = next(block for block in blocks if "preset: checkout/3ds" in block)
    example["profiles"] = yaml.safe_load(profile)["profiles"]
    example["callers"]["shop-backend"] = example["callers"]["reports-backend"]
    snapshot = parse(json.dumps(example).encode(), ROOT)
    assert snapshot.profiles["checkout-3ds"].trusted == {"shop-backend"}


def test_the_example_preset_is_good() -> None:
    """The preset of the README is one."""
    example = next(
        block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "reuse:" in block
    )
    assert parse_preset("acme", example).file.summary == "Acme widget sessions"
