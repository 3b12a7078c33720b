"""What may be written shorter in a preset or a profile, and its long form, which is what is read.

Plain trees, before anything is validated: what does not fit is left as it is, for the vocabulary to
refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def long_form(preset: Any) -> Any:
    """A preset, changed in place: `like: NAME` in an action's data is that setting's declaration,
    `@NAME` in a view all of that view, which stands before it."""
    if not isinstance(preset, dict):
        return preset
    settings = _entries(preset.get("settings"))
    for action in _entries(preset.get("actions")).values():
        data = _entries(_entries(action).get("data"))
        for name, one in data.items():
            data[name] = spelt_out(one, settings)
    views = _entries(preset.get("views"))
    for name, view in views.items():
        if isinstance(view, list):
            views[name] = [inner for one in view for inner in _entries_of_view(one, views)]
    return preset


def spelt_out(declared: Any, settings: Mapping[str, Any]) -> Any:
    """A declaration that says `like: NAME` as that setting's own, with what it says besides."""
    if not isinstance(declared, dict):
        return declared
    name = declared.get("like")
    if not (isinstance(name, str) and name in settings):
        return declared
    rest = {key: value for key, value in declared.items() if key != "like"}
    base = {k: v for k, v in _entries(settings[name]).items() if k not in ("default", "required")}
    return {**base, **rest}


def _entries_of_view(one: Any, views: Mapping[str, Any]) -> list[Any]:
    if isinstance(one, str) and one.startswith("@"):
        other = views.get(one[1:])
        return other if isinstance(other, list) else [one]
    return [one]


def _entries(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {}
