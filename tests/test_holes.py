"""Templates: holes are names, never expressions; a value keeps its type or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.holes import ABSENT, Template, Unfillable, compile_tree, fill_tree, holes_in
from broker.model import JSON

LAW = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "value", ["text", "", 5, 1.5, True, False, None, ["a", {"b": 1}], {"a": {"b": []}}]
)
def test_a_whole_hole_takes_the_value_with_its_type(value: JSON) -> None:
    """Nothing is turned into text, not even false, null or an object."""
    filled = fill_tree(compile_tree("${parameters.x}"), {"parameters.x": value})
    assert filled == value
    assert type(filled) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"), [("b", "a-b-c"), ("", "a--c"), (5, "a-5-c"), (1.5, "a-1.5-c")]
)
def test_a_hole_within_text_takes_text_and_numbers(value: JSON, expected: str) -> None:
    """And puts them between what stands around it."""
    assert Template("a-${x}-c").fill({"x": value}) == expected


@pytest.mark.parametrize("value", [True, False, None, [], ["b"], {}, {"b": 1}, ABSENT])
def test_a_hole_within_text_takes_nothing_else(value: JSON) -> None:
    """A list, an object, a truth or nothing has no place within a text: `Unfillable` says where."""
    with pytest.raises(Unfillable) as caught:
        Template("a-${x}-c").fill({"x": value})
    assert caught.value.hole == "x"


def test_a_hole_without_a_value() -> None:
    """A whole hole's member or item is left out; a hole within text is refused."""
    tree = compile_tree({"a": "${x}", "b": ["${x}", "${y}"], "c": {"d": "${x}"}, "e": "text"})
    assert fill_tree(tree, {"y": 1}) == {"b": [1], "c": {}, "e": "text"}
    assert Template("${x}").fill({}) is ABSENT
    with pytest.raises(Unfillable):
        Template("a${x}").fill({})


@pytest.mark.parametrize(
    "text", ["${", "a${b", "${a", "${a}${", "${a{b}}", "${${a}}", "$${a${b}", "${a$b}"]
)
def test_a_hole_that_is_not_a_name_is_refused(text: str) -> None:
    """Not closed, nested, or holding a brace: there are no expressions to be mistaken for one."""
    with pytest.raises(ValueError):
        Template(text)


def test_a_hole_in_a_members_name_is_refused() -> None:
    """A request could otherwise never fill it, and an operator would believe that it did."""
    with pytest.raises(ValueError, match="name"):
        compile_tree({"a": [{"${claims.x}": 1}]})


@LAW
@given(st.text(), st.text())
def test_what_fills_a_hole_is_not_looked_at_again(around: str, value: str) -> None:
    """A value with `${` in it stays as it is: a request fills holes and never makes one."""
    around = around.replace("${", "")
    poison = value + "${claims.secret}${x}"
    filled = Template(f"{around}|${{x}}|{around}").fill({"x": poison, "claims.secret": "no"})
    assert filled == f"{around}|{poison}|{around}"
    assert fill_tree(compile_tree(["${x}"]), {"x": poison}) == [poison]


@LAW
@given(st.text(st.sampled_from("ab${}.")))
def test_any_text_is_a_template_or_a_value_error(text: str) -> None:
    """And a template filled with its own holes' spellings is the text again."""
    try:
        template = Template(text)
    except ValueError:
        return
    assert template.fill({hole: f"${{{hole}}}" for hole in template.holes}) == text


def test_holes_are_found_wherever_they_are() -> None:
    """In order, in objects, lists and tuples, several in one text; names of members are none."""
    tree = compile_tree({"a": "${x}-${y}", "b": [{"c": "${z}"}], "d": 5, "e": "plain"})
    assert list(holes_in(tree)) == ["x", "y", "z"]
    assert list(holes_in((tree["a"], {}, []))) == ["x", "y"]


def test_a_template_says_only_its_holes() -> None:
    """Its repr holds no text of the configuration; equal texts are equal templates."""
    assert repr(Template("Bearer abc ${x}")) == "Template(('x',))"
    assert Template("a${x}") == Template("a${x}") != Template("b${x}")
    assert hash(Template("a${x}")) == hash(Template("a${x}"))
    assert repr(ABSENT) == "ABSENT"
