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
from broker.file import CallerEntry, CredentialEntry, IntrospectionCaller
from broker.holes import ABSENT, Unfillable, fill_tree
from broker.model import JSON, Caller, Facts, Grant
from broker.schedule import rfc3339
from broker.snapshot import Profile

_STABLE = ("claims.", "caller.", "parameters.")


def decide(profile: Profile, caller: Caller, parameters: JSON, facts: Facts) -> Grant:
    """The grant for this caller today.

    parameters: as they came, unchecked. Raises UnknownProfile (also for a profile this caller may
    not see), OriginNotAllowed, NotPermitted, InvalidParameters.
    """
    if caller.name not in profile.callers:
        raise UnknownProfile("There is no such profile for this caller.")
    if facts.origin and facts.origin not in profile.origins:
        raise OriginNotAllowed("This origin may not use this profile.")
    for claim, accepted in profile.require.items():
        if not _matches(caller.claims.get(claim), accepted):
            raise NotPermitted("This caller may not use this profile.", cause=f"claim {claim}")
    checked = _parameters(profile, parameters)
    bound: dict[str, JSON] = {}
    settings = _settings(profile, caller, checked, facts, bound)
    return Grant(
        profile=profile.name,
        caller=caller,
        parameters=checked,
        settings=settings,
        bound=bound,
        facts=facts,
    )


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


def _parameters(profile: Profile, tree: JSON) -> dict[str, JSON]:
    if not tree and isinstance(tree, dict) and not profile.parameters.declared:
        return {}
    if isinstance(tree, dict):
        for group in profile.preset.file.exactly_one:
            if len([name for name in group if name in tree]) > 1:
                raise _exclusive(group)
    checked, faults = profile.parameters.read(tree, "/parameters")
    if faults:
        raise InvalidParameters("The parameters do not fit this profile.", faults=faults)
    return checked


def _exclusive(group: list[str]) -> InvalidParameters:
    reason = f"give exactly one of {' and '.join(group)}"
    return InvalidParameters(
        f"{' and '.join(group)} exclude each other.", faults=[Fault("/parameters", reason)]
    )


def _settings(
    profile: Profile,
    caller: Caller,
    parameters: Mapping[str, JSON],
    facts: Facts,
    bound: dict[str, JSON],
) -> Mapping[str, JSON]:
    """The settings, filled. `bound` is given what came from the caller or the parameters."""
    if not profile.open_settings:
        return profile.fixed
    settings = dict(profile.fixed)
    for setting in profile.open_settings:
        values = {hole: _value(hole, profile, caller, parameters, facts) for hole in setting.holes}
        try:
            filled = fill_tree(setting.template, values)
        except Unfillable as exc:
            raise _unfit([exc.hole]) from None
        bound.update({h: v for h, v in values.items() if h.startswith(_STABLE) and v is not ABSENT})
        if filled is ABSENT:
            continue
        _, faults = setting.checker.read({setting.name: filled})
        if faults:
            raise _unfit(setting.holes)
        settings[setting.name] = filled
    for group in profile.preset.file.exactly_one:
        if len([name for name in group if name in settings]) != 1:
            raise _exclusive(group)
    return settings


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
    return {
        "caller.subject": caller.subject,
        "uuid4": facts.unique,
        "request.ip": facts.ip,
        "request.user_agent": facts.user_agent,
        "request.accept": facts.accept,
    }[hole]


def _unfit(holes: Sequence[str]) -> InvalidParameters | NotPermitted:
    """What fills a setting does not fit it: the request's fault if it came from there."""
    named = [hole.partition(".")[2] for hole in holes if hole.startswith("parameters.")]
    if named:
        return InvalidParameters(
            "The parameters do not fit this profile.",
            faults=[Fault(f"/parameters/{name}", "is missing or does not fit") for name in named],
        )
    return NotPermitted("This caller may not use this profile.", cause=f"{list(holes)} do not fit")
