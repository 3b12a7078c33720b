"""Strict readers: text to a plain tree, or one `ValueError` subclass. Nothing lenient, no I/O.

The standard parsers forgive what must not be forgiven where money hangs on a field: a key given
twice, NaN, YAML's `no` meaning False. Used for the configuration, presets, request bodies, handles
and upstream answers. Looked at: ruamel.yaml (YAML 1.2 and duplicate keys, but a second YAML stack
beside the PyYAML the tests need), orjson and msgspec (both keep the last of two equal keys).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable
from typing import Any, NoReturn

import yaml

from broker.model import JSON

_DEEPEST = 100
"""Levels of a tree: what writes it again has a limit too (orjson's is 254)."""
_QUOTED = re.compile(r"""'[^<'\s][^'\s]+'|"[^"\s]{2,}\"""")
"""What PyYAML's messages quote of the text (a tag, an anchor), not of YAML's own signs."""


class Unreadable(ValueError):
    """The text is not what it should be. The message never quotes the text; line is for YAML."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise Unreadable("a member is given twice")
    return tree


def _constant(_name: str) -> NoReturn:
    raise Unreadable("not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > 18:
        raise Unreadable("a number is too large")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Unreadable("a number is too large")
    return number


def _checked(tree: JSON, suspect: bool) -> JSON:
    """The tree, if any encoder can write it. suspect: its texts may have lone surrogates."""
    if suspect:
        json.dumps(tree, ensure_ascii=False).encode()
    level = [tree]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return tree
    raise Unreadable("nested too deeply")


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
).decode
_decode_any = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_constant,
    parse_int=lambda digits: int(digits) if len(digits) <= 18 else math.inf,
    parse_float=float,
).decode


def read_json(raw: bytes | str, *, any_number: bool = False) -> JSON:
    """A JSON text (RFC 8259, UTF-8) as a tree. Raises `Unreadable` only.

    What comes out can be written again by any encoder: numbers are finite and fit 64 bits, texts
    are Unicode without lone surrogates (`"\\ud800"` is JSON, but no text).
    any_number: numbers of any size may be in it; what is too large comes out as infinity.
    """
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        tree = (_decode_any if any_number else _decode)(text)
        suspect = "\\ud" in text or "\\uD" in text or not isinstance(raw, bytes)
        deep = text.count("[") + text.count("{") > _DEEPEST
        return _checked(tree, suspect) if suspect or deep else tree
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        pass  # raised below: the decoder's own error holds the whole text, as would its context
    raise Unreadable("not JSON")


class _Loader(yaml.SafeLoader):
    """YAML with the core schema of 1.2: only true/false/null and numbers are not text."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise Unreadable("a key must be text; quote it", key.start_mark.line + 1)
            if name in seen:
                raise Unreadable(f"the key {name!r} is given twice", key.start_mark.line + 1)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable("aliases are not read", line)
        if getattr(event, "tag", None) is not None:
            raise Unreadable("tags are not read; quote a text", line)
        return super().compose_node(parent, index)


def _resolvers() -> None:
    def add(tag: str, pattern: str, first: str) -> None:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))

    add("bool", r"^(?:true|false)$", "tf")
    add("null", r"^(?:null|~|)$", "n~")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
    add("int", r"^-?(?:0|[1-9][0-9]*)$", "-0123456789")
    add("float", r"^-?(?:0|[1-9][0-9]*)\.[0-9]+$", "-0123456789")
    add_number = _Loader.add_constructor
    add_number("tag:yaml.org,2002:int", lambda _loader, node: _integer(node.value))
    add_number("tag:yaml.org,2002:float", lambda _loader, node: _float(node.value))


_resolvers()


def read_yaml(text: str) -> JSON:
    """A YAML document as a tree, one that JSON could say. Raises `Unreadable` only, with a line
    where there is one."""
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader, made stricter)
        return _checked(tree, suspect=True)
    except Unreadable:
        raise
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else None
        raise Unreadable(
            f"not YAML: {_QUOTED.sub('…', exc.problem or 'unreadable')}", line
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Unreadable("not YAML") from None
