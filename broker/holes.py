"""Templates: a tree whose texts may have holes, `${claims.merchant_id}`, filled from plain values.

Holes are names, never expressions: what may stand in one is a closed list, checked when the
configuration loads, so that a request can fill holes but never make one. A text that is nothing but
a hole takes the value with its type; a hole within other text takes text or a number only.
Looked at: Jinja2 and string.Template. The first is a language (and has had sandbox escapes), the
second knows no types, no dotted names and no missing values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from broker.model import JSON

_HOLE = re.compile(r"\$\{([^{}$]*)\}")


class Absent:
    """Stands for a value that is not there: the member that would hold it is left out."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


class Unfillable(Exception):
    """A hole within text has no value, or one that is not text or a number. `hole` says which."""

    def __init__(self, hole: str) -> None:
        super().__init__(hole)
        self.hole = hole


class Template:
    """A text with holes, cut up once. `parts` alternates text and hole names, text first."""

    __slots__ = ("holes", "parts", "whole")

    def __init__(self, text: str) -> None:
        self.parts: tuple[str, ...] = tuple(_HOLE.split(text))
        self.holes: tuple[str, ...] = self.parts[1::2]
        if "${" in "".join(self.parts[::2]):
            raise ValueError("a ${ is not closed, or what it holds is not a name")
        self.whole = self.parts[1] if len(self.parts) == 3 and not any(self.parts[::2]) else None

    def fill(self, values: Mapping[str, JSON]) -> JSON:
        """The value (ABSENT where a whole hole has none). Raises Unfillable."""
        if self.whole is not None:
            return values.get(self.whole, ABSENT)
        return "".join(
            part if index % 2 == 0 else _text(part, values.get(part, ABSENT))
            for index, part in enumerate(self.parts)
        )

    def __repr__(self) -> str:
        return f"Template({self.holes})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def _text(hole: str, value: JSON) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unfillable(hole)


def is_template(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def compile_tree(tree: JSON) -> JSON:
    """The tree with every text that has holes made a Template. Raises ValueError."""
    if isinstance(tree, dict):
        if any(is_template(name) for name in tree):
            raise ValueError("a ${ stands in a member's name; holes are for values")
        return {name: compile_tree(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [compile_tree(value) for value in tree]
    return Template(tree) if is_template(tree) else tree


def fill_tree(tree: JSON, values: Mapping[str, JSON]) -> JSON:
    """The tree with its holes filled; members and items without a value are left out."""
    if isinstance(tree, Template):
        return tree.fill(values)
    if isinstance(tree, dict):
        filled = {name: fill_tree(value, values) for name, value in tree.items()}
        return {name: value for name, value in filled.items() if value is not ABSENT}
    if isinstance(tree, list):
        return [item for item in (fill_tree(value, values) for value in tree) if item is not ABSENT]
    return tree


def steps_of(pointer: str) -> list[str]:
    """The names that a JSON Pointer (RFC 6901) goes through."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def value_at(tree: JSON, at: str) -> JSON:
    """The value at a JSON Pointer through objects, ABSENT where there is none."""
    for name in steps_of(at):
        if not isinstance(tree, dict) or name not in tree:
            return ABSENT
        tree = tree[name]
    return tree


def holes_in(tree: Any) -> Iterator[str]:
    """Every hole's name, in order."""
    if isinstance(tree, Template):
        yield from tree.holes
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from holes_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from holes_in(value)
