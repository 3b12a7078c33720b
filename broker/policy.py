"""`decide(profile, caller, parameters, facts) -> Grant`: may this be minted, and what exactly.

Pure and total: no I/O, no clock, the same answer for the same question, a `Grant` or a refusal. It
is asked again at every mint, rotation and replay, before any cache. What is not listed is refused;
a claim that is missing refuses rather than becoming an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.errors import (
    Fault,
    InvalidParameters,
    NotPermitted,
    OriginNotAllowed,
    UnknownProfile,
)
from broker.faults import pointer
from broker.file import CallerEntry, CredentialEntry, IntrospectionCaller
from broker.holes import ABSENT, Template, Unfillable, fill_tree, value_at
from broker.model import JSON, Caller, Facts, Grant, observed
from broker.schedule import rfc3339
from broker.snapshot import OpenSetting, Profile

_FROM_CALLER = ("claims.", "caller.")


def decide(profile: Profile, caller: Caller, parameters: JSON, facts: Facts) -> Grant:
    """The grant for this caller today.

    parameters: as they came, unchecked. Raises UnknownProfile (also for a profile this caller may
    not see), OriginNotAllowed, NotPermitted, InvalidParameters.
    """
    trusted = _admit(profile, caller, facts)
    checked = _parameters(profile, parameters, trusted)
    grant = _grant(profile, caller, checked, facts, trusted)
    for group in profile.preset.file.exactly_one:
        if len([name for name in group if name in grant.settings]) != 1:
            raise _exclusive(group)
    has_opted_in(profile, grant.settings, "/parameters")
    return grant


def follow_up(
    profile: Profile, caller: Caller, parameters: Mapping[str, JSON], facts: Facts
) -> Grant:
    """The grant to go on with a session that this caller was given, decided anew.

    parameters: of the mint, from the handle; where it does not keep them, settings that need them
    are left out: no follow-up call of the profile does. Raises as `decide` does.
    """
    if profile.keeps_parameters:
        return decide(profile, caller, dict(parameters), facts)
    return _grant(profile, caller, None, facts, _admit(profile, caller, facts))


def trusts(profile: Profile, caller: Caller, facts: Facts) -> bool:
    """Is this one of the profile's own servers? Never with a browser's Origin."""
    return caller.name in profile.trusted and not facts.origin


def oversee(profile: Profile, caller: Caller, facts: Facts) -> Grant:
    """The grant of a trusted caller to read what became of somebody else's session: only what the
    configuration itself says. Raises NotPermitted."""
    if not trusts(profile, caller, facts):
        raise NotPermitted("This handle was made for somebody else.", cause="not trusted")
    return Grant(
        profile=profile.name, caller=caller, parameters={}, settings=profile.fixed, bound={},
        facts=facts,
    )  # fmt: skip


def _admit(profile: Profile, caller: Caller, facts: Facts) -> bool:
    """May they use this profile at all? Whether it trusts them."""
    if caller.name not in profile.callers:
        raise UnknownProfile("There is no such profile for this caller.")
    if facts.origin and facts.origin not in profile.origins:
        raise OriginNotAllowed("This origin may not use this profile.")
    if trusts(profile, caller, facts):
        return True
    for claim, accepted in profile.require.items():
        if not _matches(caller.claims.get(claim), accepted):
            raise NotPermitted("This caller may not use this profile.", cause=f"claim {claim}")
    return False


def has_opted_in(profile: Profile, said: Mapping[str, JSON], at: str) -> None:
    """Raises InvalidParameters for what the profile must say yes to in words first, and does not.

    said: settings, or an action's data under the names of settings; at: where they came from."""
    for rule in profile.preset.file.opt_in:
        if value_at(said, rule.at) == rule.equals and profile.fixed.get(rule.needs) is not True:
            fault = Fault(at, f"{rule.equals} as {rule.at} is refused by this profile")
            raise InvalidParameters("The profile does not take this.", faults=[fault])


def may_have_access_token(
    credential: CredentialEntry, entry: CallerEntry | None, caller: Caller
) -> None:
    """Access tokens are for services that the credential is exposed to, never for a person.

    An introspection caller that names the scope or the audience of services has said which tokens
    are theirs. Without, its server also vouches for people; a service is then known by being its
    own subject, as a client's own token is (RFC 9068 §2.2), with no user (RFC 7662 §2.2). Raises
    UnknownProfile, NotPermitted.
    """
    if caller.name not in credential.expose_to:
        raise UnknownProfile("There is no such credential for this caller.")
    if not isinstance(entry, IntrospectionCaller) or entry.scope or entry.audience:
        return
    own = caller.claims.get("client_id") == caller.subject
    if not own or caller.claims.get("username") not in (None, caller.subject):
        raise NotPermitted("Access tokens are for services only.", cause="the token of a person")


def _matches(claim: JSON, accepted: frozenset[str]) -> bool:
    values = claim if isinstance(claim, list) else [claim]
    return any(isinstance(value, str) and value in accepted for value in values)


def _parameters(profile: Profile, tree: JSON, trusted: bool) -> dict[str, JSON]:
    if not tree and isinstance(tree, dict) and not profile.parameters.declared:
        return {}
    if isinstance(tree, dict):
        if not trusted and (said := sorted(profile.trusted_parameters & tree.keys())):
            faults = [Fault(pointer("parameters", n), "is for trusted callers only") for n in said]
            raise InvalidParameters("This caller may not say this.", faults=faults)
        for group in profile.preset.file.exactly_one:
            if len([name for name in group if name in tree]) > 1:
                raise _exclusive(group)
    checked, faults = profile.parameters.read(tree, "/parameters", tells=trusted)
    if faults:
        raise InvalidParameters("The parameters do not fit this profile.", faults=faults)
    return checked


def _exclusive(group: list[str]) -> InvalidParameters:
    reason = f"give exactly one of {' and '.join(group)}"
    return InvalidParameters(
        f"{' and '.join(group)} exclude each other.", faults=[Fault("/parameters", reason)]
    )


def _grant(
    profile: Profile,
    caller: Caller,
    parameters: dict[str, JSON] | None,
    facts: Facts,
    trusted: bool,
) -> Grant:
    """The settings filled, and what of them the caller is bound to by a handle.

    parameters: checked; None leaves out the settings that need them. trusted: such a caller tells
    what is observed of others, as it is not the browser itself."""
    settings = dict(profile.fixed)
    bound: dict[str, JSON] = {}
    said = parameters or {}
    stable = (*_FROM_CALLER, "parameters.") if profile.keeps_parameters else _FROM_CALLER
    for setting in profile.open_settings:
        values = {hole: _value(hole, profile, caller, said, facts) for hole in setting.holes}
        bound.update({h: v for h, v in values.items() if h.startswith(stable) and v is not ABSENT})
        if parameters is None and any(hole.startswith("parameters.") for hole in setting.holes):
            continue
        filled = _filled(setting, values, trusted)
        if filled is ABSENT:
            continue
        found, faults = setting.checker.read({setting.name: filled}, tells=trusted)
        if faults:
            raise _unfit(setting, setting.holes, faults)
        if not trusted:
            setting.checker.observe(found, observed(facts))
        settings[setting.name] = found[setting.name]
    return Grant(
        profile=profile.name,
        caller=caller,
        parameters=said,
        settings=settings,
        bound=bound,
        facts=facts,
    )


def _filled(setting: OpenSetting, values: Mapping[str, JSON], trusted: bool) -> JSON:
    """ABSENT where a whole hole has no value, and the setting may do without."""
    unsaid = [hole for hole in setting.not_for_pages if values[hole] is ABSENT]
    if unsaid and not trusted:  # a page does not choose to leave it out
        raise _unfit(setting, unsaid)
    try:
        filled = fill_tree(setting.template, values)
    except Unfillable as exc:
        raise _unfit(setting, [exc.hole]) from None
    if filled is ABSENT and setting.checker.declared[setting.name].required:
        raise _unfit(setting, setting.holes)
    return filled


def _value(
    hole: str, profile: Profile, caller: Caller, parameters: Mapping[str, JSON], facts: Facts
) -> JSON:
    space, _, key = hole.partition(".")
    if space == "claims":
        value = caller.claims.get(key)
        if value is None or value == "":
            raise NotPermitted("This caller may not use this profile.", cause=f"no claim {key}")
        return value
    if space == "parameters":
        return parameters.get(key, ABSENT)
    if hole in profile.instants:
        return rfc3339(facts.now + profile.instants[hole])
    known = {"caller.subject": caller.subject, "uuid4": facts.unique, **observed(facts)}
    return known[hole]


def _unfit(
    setting: OpenSetting, holes: Sequence[str], faults: Sequence[Fault] = ()
) -> InvalidParameters | NotPermitted:
    """What fills a setting does not fit it: the request's fault if it came from there."""
    named = [hole.partition(".")[2] for hole in holes if hole.startswith("parameters.")]
    if not named:
        why = "".join(f"; {fault.pointer} {fault.reason}" for fault in faults[:5])
        return NotPermitted(
            "This caller may not use this profile.", cause=f"{list(holes)} do not fit{why}"
        )
    whole = isinstance(setting.template, Template) and setting.template.whole is not None
    if whole and faults:  # what the setting is told is what the parameter should be
        here, there = pointer(setting.name), pointer("parameters", named[0])
        told = [Fault(there + fault.pointer.removeprefix(here), fault.reason) for fault in faults]
    else:
        told = [Fault(pointer("parameters", one), "is missing or does not fit") for one in named]
    return InvalidParameters("The parameters do not fit this profile.", faults=told)
