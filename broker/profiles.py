"""One profile's entry and its settings to a `Profile`, or their faults.

What a preset declares is checked by the preset; here is what a profile makes of it: which holes its
settings have and may have, and which of settings that exclude each other it sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import limits

from broker.declared import OBSERVED, Checked
from broker.errors import Fault
from broker.faults import pointer, secret_hint
from broker.file import ProfileEntry
from broker.holes import Template, compile_tree, holes_in, value_at
from broker.kinds import SecretRef
from broker.model import JSON
from broker.presets import Preset
from broker.presets.vocabulary import parts_of
from broker.schedule import parse_duration
from broker.snapshot import OpenSetting, Profile

FaultAt = Callable[[str, str], None]
"""Takes where, as a JSON Pointer, and what is wrong there."""
_ACTIONS = limits.parse("120/minute")
"""A page that runs an authentication makes a handful, and asks for its status once a second."""
_KNOWN = (*OBSERVED, "caller.subject", "uuid4")


def read_settings(
    at: str, preset: Preset, settings: dict[str, Any]
) -> tuple[dict[str, JSON], list[Fault]]:
    """The settings with defaults and Templates, durations in seconds; or every fault."""
    found, faults = preset.settings.read(settings, at)
    secrets = [name for name, one in preset.file.settings.items() if one.type == "secret"]
    if faults:
        return {}, secret_hint(faults, secrets)
    plain = {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in found.items()
    }
    try:
        return compile_tree(plain), []
    except ValueError as exc:
        return {}, [Fault(at, str(exc))]


def make_profile(
    name: str, at: str, entry: ProfileEntry, preset: Preset, found: dict[str, JSON], fault: FaultAt
) -> Profile:
    """The profile; what is wrong with it is told to `fault`."""
    instants = _instants(at, entry, preset, found, fault)
    _check_choices(at, entry, preset, found, fault)
    keeps = entry.rotation is not None or _follow_ups_need_parameters(preset, found)
    _check_opt_in(at, preset, found, keeps, fault)
    _check_readings(at, preset, found, fault)
    declared = preset.file.settings
    secrets = {k: tuple(v) for k, v in found.items() if declared[k].type == "secret"}
    base_url = (entry.base_url or preset.file.base_url or "").rstrip("/")
    open_settings = _open_settings(preset, entry, found)
    not_fixed = {*secrets, *(one.name for one in open_settings)}
    return Profile(
        name=name,
        preset=preset,
        base_url=base_url,
        account=_account(preset, base_url, entry.credential, secrets),
        fixed={k: v for k, v in found.items() if k not in not_fixed},
        open_settings=open_settings,
        instants=instants,
        secrets=secrets,
        credential=entry.credential,
        callers=frozenset(entry.allow.callers),
        trusted=frozenset(entry.allow.trusted),
        origins=frozenset(entry.allow.origins),
        require={claim: frozenset(v) for claim, v in entry.allow.require.items()},
        parameters=Checked(entry.parameters),
        trusted_parameters=frozenset(n for n, one in entry.parameters.items() if one.trusted),
        keeps_parameters=keeps,
        rotation=entry.rotation,
        min_remaining=entry.min_remaining.total_seconds() if entry.min_remaining else None,
        rate_limit=entry.rate_limit,
        action_limit=entry.action_limit or _ACTIONS,
        upstream_limit=entry.upstream_limit,
    )


def _instants(
    at: str, entry: ProfileEntry, preset: Preset, found: Mapping[str, JSON], fault: FaultAt
) -> dict[str, timedelta]:
    """What `${now+…}` holes add, by hole; and every hole checked."""
    instants: dict[str, timedelta] = {}
    for setting, value in found.items():
        for hole in holes_in(value):
            _check_hole(hole, setting, at + pointer(setting), entry, preset, fault)
            if hole == "now" or hole.startswith("now+"):
                _instant(hole, at + pointer(setting), instants, fault)
    return instants


def _account(
    preset: Preset,
    base_url: str,
    credential: str | None,
    secrets: Mapping[str, tuple[SecretRef, ...]],
) -> str:
    """Named by the oldest of several keys, so that a rollover that begins changes no account."""
    held = preset.file.authorization.secrets
    sources = [secrets[name][-1].source for name in held if name in secrets]
    return " ".join([preset.name, base_url, credential or "", *sources])


def _open_settings(
    preset: Preset, entry: ProfileEntry, found: Mapping[str, JSON]
) -> tuple[OpenSetting, ...]:
    """Those that a request has a part in: by holes, or by what is observed of it."""
    file = preset.file
    by_trusted = {f"parameters.{name}" for name, one in entry.parameters.items() if one.trusted}
    settings = []
    for name, value in found.items():
        holes = tuple(holes_in(value))
        checker = Checked({name: file.settings[name]})
        kept = name in file.guarded or name in file.merchant
        not_for_pages = tuple(hole for hole in holes if kept and hole in by_trusted)
        if holes or checker.observes:
            settings.append(OpenSetting(name, value, holes, not_for_pages, checker))
    return tuple(settings)


def _check_hole(
    hole: str, setting: str, at: str, entry: ProfileEntry, preset: Preset, fault: FaultAt
) -> None:
    space, _, key = hole.partition(".")
    if hole in OBSERVED and setting in preset.file.guarded:
        fault(at, f"{setting} is not for a browser to say, in no field of its requests")
    elif space == "parameters" and key in entry.parameters:
        if entry.parameters[key].trusted:
            return
        if setting in preset.file.merchant and not entry.merchant_from_parameters:
            fault(
                at,
                "who the merchant is comes from claims or from this file; to let the request say "
                "it, add merchant_from_parameters: true",
            )
        if setting in preset.file.guarded:
            fault(
                at,
                f"{setting} comes from claims, from this file, or from a parameter with "
                "trusted: true; a browser does not say it",
            )
    elif space == "parameters":
        fault(at, f"${{{hole}}}: this profile declares no such parameter")
    elif not (
        hole in _KNOWN or hole == "now" or hole.startswith("now+") or (space == "claims" and key)
    ):
        fault(
            at,
            f"${{{hole}}} is not known; there are claims.x, parameters.x, caller.subject, "
            "request.ip|user_agent|accept, uuid4, now+15m",
        )


def _instant(hole: str, at: str, instants: dict[str, timedelta], fault: FaultAt) -> None:
    try:
        instants[hole] = parse_duration("0s" if hole == "now" else hole[4:])
    except ValueError as exc:
        fault(at, f"${{{hole}}}: {exc}")


def _check_choices(
    at: str, entry: ProfileEntry, preset: Preset, settings: Mapping[str, JSON], fault: FaultAt
) -> None:
    """Of each `exactly_one` group one is set; several only where the request chooses."""
    for group in preset.file.exactly_one:
        names = " and ".join(group)
        present = [name for name in group if name in settings]
        if not present:
            fault(at, f"set exactly one of {names}; neither is set")
        elif len(present) > 1 and not all(
            _chosen_by_request(settings[name], entry) for name in present
        ):
            fault(at, f"{names} exclude each other: set exactly one of them")


def _chosen_by_request(value: JSON, entry: ProfileEntry) -> bool:
    if not (isinstance(value, Template) and value.whole):
        return False
    space, _, name = value.whole.partition(".")
    declared = entry.parameters.get(name)
    return space == "parameters" and declared is not None and not declared.required


def _follow_ups_need_parameters(preset: Preset, settings: Mapping[str, JSON]) -> bool:
    """Does an action, or the revocation, send a setting that a request's parameters fill?"""
    from_request = {
        f"settings.{name}"
        for name, value in settings.items()
        if any(hole.startswith("parameters.") for hole in holes_in(value))
    }
    requests = [action.request for action in preset.file.actions.values()]
    requests += [preset.file.revoke] if preset.file.revoke else []
    return any(hole in from_request for one in requests for hole in holes_in(parts_of(one)))


def _check_opt_in(
    at: str, preset: Preset, settings: Mapping[str, JSON], keeps: bool, fault: FaultAt
) -> None:
    """What needs a yes in words: refused here where the file says it, by policy where a request
    does; and never with handles that would have to keep it."""
    for rule in preset.file.opt_in:
        if any(holes_in(settings.get(rule.needs))):
            fault(at + pointer(rule.needs), "is for this file to say: true or false")
        elif settings.get(rule.needs) is True:
            if keeps:
                fault(at + pointer(rule.needs), "a handle would have to keep what this lets in")
        elif value_at(settings, rule.at) == rule.equals:
            fault(at + rule.at, f"{rule.equals!r} needs {rule.needs}: true")


def _check_readings(at: str, preset: Preset, settings: Mapping[str, JSON], fault: FaultAt) -> None:
    """What is read without the caller it was made for can need nothing of a caller."""
    file = preset.file
    for name, action in file.actions.items():
        if action.trusted is None and not (file.callbacks and file.callbacks.read == name):
            continue
        for hole in holes_in(parts_of(action.request)):
            setting = hole.removeprefix("settings.")
            if setting != hole and any(holes_in(settings.get(setting))):
                fault(at + pointer(setting), f"the action {name!r} needs it without a caller too")
