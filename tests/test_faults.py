"""What is wrong and where: in our words, and never a word of what was sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.declared import Checked, Declared
from broker.errors import Fault
from broker.faults import UNTOLD, pointer, secret_hint

CANARY = "c4nary"
VARIANTS = {
    "type": "object",
    "by": "type",
    "properties": {"both": {"type": "string"}},
    "variants": {
        "a": {"x": {"type": "integer", "required": True}},
        "b": {"y": {"type": "object", "properties": {"z": {"type": "string", "required": True}}}},
    },
}
DEEP = {"v": VARIANTS, "list": {"type": "array", "items": VARIANTS}}


def read(declared: dict[str, Any], tree: Any, *, holes: bool = False) -> list[Fault]:
    checked = Checked({k: Declared.model_validate(v) for k, v in declared.items()}, holes=holes)
    found = checked.read(tree, "/at")[1]
    assert not any(UNTOLD in fault.pointer + fault.reason for fault in found)
    return found


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        ({"type": "a", "x": 1}, []),
        ({"type": "b"}, []),
        ({"type": "b", "y": {"z": "t"}, "both": "t"}, []),
        ({"type": "c", "x": 1}, [("", "is not one of the known types")]),
        ({"type": CANARY}, [("", "is not one of the known types")]),
        ({"type": 5}, [("", "does not say which of the known types it is")]),
        ({"type": None}, [("", "does not say which of the known types it is")]),
        ({"type": ["a"]}, [("", "does not say which of the known types it is")]),
        ({"type": UNTOLD + "a"}, [("", "is not one of the known types")]),
        ({"x": 1}, [("", "does not say which of the known types it is")]),
        ({}, [("", "does not say which of the known types it is")]),
        (CANARY, [("", "does not say which of the known types it is")]),
        ([], [("", "does not say which of the known types it is")]),
        (None, [("", "does not say which of the known types it is")]),
        ({"type": "a"}, [("/x", "is required")]),
        ({"type": "a", "x": CANARY}, [("/x", "must be a whole number")]),
        ({"type": "a", "x": 1, "y": {"z": "t"}}, [("", "has a member that is not declared")]),
        ({"type": "b", "x": 1}, [("", "has a member that is not declared")]),
        ({"type": "b", "y": {}}, [("/y/z", "is required")]),
        ({"type": "b", "y": {"z": 5, CANARY: 1}}, [("/y/z", "must be text"), ("/y", "has a member that is not declared")]),
        ({"type": "a", "x": 1, CANARY: CANARY, "n": 1}, [("", "has a member that is not declared")]),
    ],
)  # fmt: skip
def test_variants(value: Any, faults: list[tuple[str, str]]) -> None:
    """One variant is checked, the one that it says it is; which was tried is no part of the place."""
    assert read(DEEP, {"v": value}) == [Fault(f"/at/v{at}", reason) for at, reason in faults]
    found = read(DEEP, {"list": [{"type": "b"}, value]})
    assert found == [Fault(f"/at/list/1{at}", reason) for at, reason in faults]
    assert CANARY not in repr(found)


def test_an_operator_is_told_the_member() -> None:
    """In a configuration, the key that is not known is named."""
    found = read(DEEP, {"v": {"type": "a", "x": 1, "typo": 1}}, holes=True)
    assert found == [Fault("/at/v/typo", "is not a known key")]


def test_a_setting_like_a_variant_may_be_a_hole_as_a_whole() -> None:
    """Or members of it; not the member that tells variants apart."""
    for good in (
        "${parameters.v}",
        {"type": "a", "x": "${claims.x}"},
        {"type": "b", "y": "${claims.y}"},
    ):
        assert read(DEEP, {"v": good}, holes=True) == []
    assert read(DEEP, {"v": {"type": "${claims.t}", "x": 1}}, holes=True) == [
        Fault("/at/v", "is not one of the known types")
    ]


def test_the_first_place_with_its_own_names() -> None:
    """A stranger is told what is declared at the top only."""
    assert read(DEEP, {CANARY: 1, "v": {"type": "a", "x": 1, CANARY: 1}}) == [
        Fault("/at/v", "has a member that is not declared"),
        Fault("/at", "has a member that is not declared; declared: v, list"),
    ]


@pytest.mark.parametrize(
    ("at", "reason", "hinted"),
    [
        ("/p/key", "must be a mapping", True),
        ("/key", "must be a mapping", True),
        ("/p/other", "must be a mapping", False),
        ("/p/key", "is required", False),
        ("/key/file", "must be text", False),
    ],
)
def test_a_hint_for_secrets(at: str, reason: str, hinted: bool) -> None:
    """Only where a secret was written in another form."""
    (found,) = secret_hint([Fault(at, reason)], ["key"])
    assert (found.reason != reason) == hinted
    assert found.pointer == at


STEPS = st.lists(st.text(max_size=4) | st.integers(0, 9), max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS)
def test_a_pointer_can_be_taken_apart_again(steps: list[str | int]) -> None:
    """RFC 6901."""
    text = pointer(*steps)
    parts = [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]
    assert parts == [str(step) for step in steps]


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["a", "b", CANARY]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "x", "y", "z", CANARY]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["v", "list", CANARY]), TREES))
def test_no_fault_repeats_what_was_sent(tree: dict[str, Any]) -> None:
    """Whatever a stranger sends: places that were declared, our own words."""
    assert CANARY not in repr(read(DEEP, tree))
