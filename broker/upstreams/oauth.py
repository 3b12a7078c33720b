"""The token endpoint of an OAuth 2 upstream: one request for an access token (RFC 6749 §4.4).

Exists so that the rest of the house knows access tokens but no OAuth. Authlib proves the client
(RFC 6749 §2.3.1, RFC 7523); the request goes through the one `Transport`. Remembers nothing but
which of several client secrets worked last: keeping tokens is `tokens.Cached`. Must never retry,
guess an authentication method (that sends the secret twice), or let a word of an answer or a
secret into an exception or a log.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import structlog
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwk
from joserfc.errors import SecurityWarning

from broker.errors import (
    BrokerError,
    ConfigError,
    Fault,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.faults import pointer
from broker.file import CredentialEntry
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import JSON, AccessToken, Life, Outcome, Secret
from broker.schedule import Clock, parse_retry_after
from broker.strict import Unreadable, read_json
from broker.upstreams.transport import Answer, Transport

BODY_LIMIT = 64 << 10
"""Bytes: a token of 16 KiB already fits no upstream's header limit."""
ASSERTION_LIFE = 300
"""Seconds: longer than clocks are apart, short enough for servers that refuse long assertions."""

_CODES = (
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
)
"""RFC 6749 §5.2; any other text in `error` is the upstream's own and goes nowhere."""
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_HEADERS = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
_KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}

_log = structlog.get_logger("oauth")

Prove = Callable[[dict[str, str], str], tuple[dict[str, str], str]]
"""Headers and form to headers and form with which the client has proven itself."""


class _Proof(NamedTuple):
    """One way to be this client: with this secret or key."""

    fingerprint: str
    prove: Prove


class OAuth:
    """A `TokenSource` that asks its token endpoint each time it is asked."""

    def __init__(
        self,
        name: str,
        entry: CredentialEntry,
        keyring: Keyring,
        transport: Transport,
        clock: Clock,
        metrics: Metrics,
        *,
        digest_key: bytes | None = None,
    ) -> None:
        """digest_key: for `request_key`, else a random one. Raises ConfigError for a bad key."""
        self._name = name
        self._entry = entry
        self._transport = transport
        self._clock = clock
        self._metrics = metrics
        self._digest_key = digest_key or os.urandom(32)
        self._client_id = keyring.get(entry.client_id).reveal()
        self._form = self._form_of()
        self._proofs = self._proofs_of(keyring)
        self._worked = 0

    async def token(self, *, min_fresh: float = 0.0) -> AccessToken:
        """A new token, with its whole life left; what `min_fresh` compares is up to the caller."""
        with _counted(lambda outcome: self._metrics.access_token_refreshed(self._name, outcome)):
            return await self._ask_with_each_secret()

    def forget(self, *, older_than: float) -> None:
        """Nothing is held here."""

    def request_key(self) -> str:
        """Hex HMAC-SHA256 of everything that shapes the request: who shares it may share tokens.

        JSON, as joined texts would let one field end where another begins.
        """
        entry = self._entry
        shape = {
            "token_url": entry.token_url,
            "client_id": self._client_id,
            "client_auth": entry.client_auth,
            "basic_encoding": entry.basic_encoding,
            "proofs": [proof.fingerprint for proof in self._proofs],
            "assertion": [entry.assertion_alg, entry.assertion_kid, entry.assertion_audience],
            "scope": sorted(entry.scope),
            "audience": entry.audience,
            "resource": entry.resource,
            "parameters": sorted(entry.parameters.items()),
        }
        return hmac.digest(self._digest_key, json.dumps(shape).encode(), "sha256").hex()

    async def _ask_with_each_secret(self) -> AccessToken:
        """Secrets newest first, but ahead of all the one that worked last: a rollover costs one
        request more, not one more at each refresh."""
        first = self._worked
        order = [first, *(i for i in range(len(self._proofs)) if i != first)]
        for index in order:
            try:
                found = await self._ask(self._proofs[index])
            except _UnknownClient:
                refused = self._proofs[index].fingerprint
                _log.warning("client_secret_refused", credential=self._name, fingerprint=refused)
                if index == order[-1]:
                    raise
            else:
                self._worked = index
                return found
        raise AssertionError("a credential has at least one proof")

    async def _ask(self, proof: _Proof) -> AccessToken:
        headers, form = proof.prove(dict(_HEADERS), self._form)
        sent = self._clock.monotonic()
        wall = self._clock.now()

        def count(outcome: Outcome) -> None:
            took = self._clock.monotonic() - sent
            self._metrics.upstream_answered(self._name, "token", outcome, took)

        with _counted(count):
            answer = await self._transport.send(
                "POST",
                self._entry.token_url,
                headers=headers,
                body=form.encode(),
                timeout=self._entry.timeout.total_seconds(),
                limit=BODY_LIMIT,
            )
            tree = self._granted(answer)
            lifetime = self._lifetime(tree.get("expires_in"))
            life = Life(wall + lifetime, lifetime, sent + lifetime.total_seconds())
            return self._token(tree, life, sent)

    def _granted(self, answer: Answer) -> dict[str, JSON]:
        """The members of an answer that grants; an error for every other answer."""
        status = answer.status
        if status >= 500 or status in (408, 429):
            wait = parse_retry_after(answer.headers.get("retry-after"), self._clock.now())
            kind = _Throttled if status == 429 else UpstreamUnavailable
            raise kind("The token endpoint is unwell.", cause=f"HTTP {status}", retry_after=wait)
        try:
            tree = read_json(answer.body)
        except Unreadable:
            tree = None
        error = tree.get("error") if isinstance(tree, dict) else None
        if status == 406 or status < 200 or 300 <= status < 400:
            raise UpstreamNonsense("The token endpoint's answer is none.", cause=f"HTTP {status}")
        if status >= 400 or error is not None:
            raise _refused(status, error)
        if not isinstance(tree, dict):
            raise UpstreamNonsense("The token endpoint's answer is no JSON object.")
        return tree

    def _token(self, tree: dict[str, JSON], life: Life, sent: float) -> AccessToken:
        value, kind = tree.get("access_token"), tree.get("token_type")
        # RFC 6749 §5.1: a scope that is left out is the one that was asked for.
        scope = self._entry.scope if tree.get("scope") is None else tree["scope"]
        if not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
            raise UpstreamNonsense("The token endpoint's answer has no usable access token.")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise UpstreamNonsense("The token endpoint's token is not a bearer token.")
        if isinstance(scope, list) and all(isinstance(one, str) for one in scope):
            scope = " ".join(scope)
        if not isinstance(scope, str):
            raise UpstreamNonsense("The token endpoint's scope is not a text.")
        return AccessToken(Secret(value), "Bearer", scope, life, sent)

    def _lifetime(self, value: JSON) -> timedelta:
        """`expires_in`, within reason; where it is absent, what is configured."""
        asked = self._entry.default_lifetime if value is None else _seconds(value)
        if asked is None:
            raise UpstreamNonsense("The token endpoint did not say how long its token lives.")
        found = min(asked, self._entry.max_lifetime)
        if value is None or found < asked:
            self._metrics.lifetime_assumed(self._name)
            _log.warning("token_lifetime_assumed", credential=self._name, given=value is not None)
        return found

    def _form_of(self) -> str:
        entry = self._entry
        fields = [("grant_type", "client_credentials")]
        fields += [("scope", " ".join(entry.scope))] if entry.scope else []
        fields += [("audience", entry.audience)] if entry.audience is not None else []
        fields += [("resource", one) for one in entry.resource]
        fields += entry.parameters.items()
        return urlencode(fields)

    def _proofs_of(self, keyring: Keyring) -> list[_Proof]:
        entry = self._entry
        if entry.private_key is not None:
            pem = keyring.get(entry.private_key)
            try:
                key = _key_of(pem.reveal(), entry.assertion_alg)
                prove = self._signed_with(key)
                prove({}, self._form)
            except Exception:  # noqa: BLE001  (a dozen kinds, whose texts may quote the key)
                at = pointer("credentials", self._name, "private_key")
                reason = f"is no private key, PEM or JWK, that {entry.assertion_alg} can use"
                raise ConfigError([Fault(at, reason)]) from None
            return [_Proof(pem.fingerprint, prove)]
        secrets = [keyring.get(ref) for ref in entry.client_secret or []]
        return [_Proof(secret.fingerprint, self._shown(secret)) for secret in secrets]

    def _shown(self, secret: Secret) -> Prove:
        """Proof by showing the secret, in the form or by HTTP Basic."""
        method: Any = self._entry.client_auth
        encode: Callable[[str], str] = str
        if method == "client_secret_basic":
            # Authlib's Basic does neither RFC 6749's form encoding nor any text beyond Latin-1.
            encode = quote_plus if self._entry.basic_encoding == "form" else str
            method = _basic

        def prove(headers: dict[str, str], form: str) -> tuple[dict[str, str], str]:
            auth = ClientAuth(encode(self._client_id), encode(secret.reveal()), method)
            _, proven, body = auth.prepare("POST", self._entry.token_url, headers, form)
            return proven, body

        return prove

    def _signed_with(self, key: jwk.Key) -> Prove:
        """Proof by an assertion of our own, each with a new `jti`: servers refuse a second use."""
        entry = self._entry
        kid = entry.assertion_kid or key.kid

        def prove(headers: dict[str, str], form: str) -> tuple[dict[str, str], str]:
            now = int(self._clock.now().timestamp())
            method = PrivateKeyJWT(
                entry.assertion_audience or entry.token_url,
                claims={"jti": str(uuid.uuid4()), "iat": now, "exp": now + ASSERTION_LIFE},
                headers={"kid": kid} if kid else {},
                alg=entry.assertion_alg,
            )
            form += "&" + urlencode({"client_id": self._client_id})
            auth = ClientAuth(self._client_id, key, method)
            with warnings.catch_warnings():
                # RFC 9864 renames EdDSA to Ed25519; servers do not know the new name yet.
                warnings.simplefilter("ignore", SecurityWarning)
                _, proven, body = auth.prepare("POST", entry.token_url, headers, form)
            return proven, body

        return prove


class _UnknownClient(UpstreamRefused):
    """`invalid_client`: another secret may be the right one."""


def _basic(
    client: ClientAuth, _method: str, uri: str, headers: dict[str, str], body: str
) -> tuple[str, dict[str, str], str]:
    """HTTP Basic in UTF-8 (RFC 7617 §2.1), as an Authlib authentication method."""
    pair = f"{client.client_id}:{client.client_secret}".encode()
    headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return uri, headers, body


def _key_of(text: str, alg: str) -> jwk.Key:
    """A private key for `alg`. Raises whatever the libraries raise."""
    tree: Any = read_json(text) if text.lstrip().startswith("{") else text
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)  # an RSA key under 2048 bits
        return jwk.import_key(tree, _KEY_TYPES[alg])  # type: ignore[call-overload,no-any-return]


def _seconds(value: JSON) -> timedelta:
    """Seconds as a number or, with some servers, a text of one; up to where `timedelta` ends."""
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value < 1e13:
        raise UpstreamNonsense("The token endpoint's expires_in is not a time to come.")
    return timedelta(seconds=value)


class _Throttled(UpstreamUnavailable):
    """429: the same to callers, another outcome to metrics."""


def _refused(status: int, error: JSON) -> UpstreamRefused:
    """A 401 that names no error is `invalid_client` too: RFC 6749 has no other 401 here."""
    code = error if isinstance(error, str) and error in _CODES else ""
    unknown = code == "invalid_client" or (status == 401 and not code)
    return (_UnknownClient if unknown else UpstreamRefused)(
        "The token endpoint refused our credential or request.",
        cause=f"HTTP {status} {code}".rstrip(),
    )


_OUTCOMES: dict[type[BrokerError], Outcome] = {
    _Throttled: Outcome.THROTTLED,
    UpstreamUnavailable: Outcome.UNAVAILABLE,
    UpstreamTimeout: Outcome.TIMEOUT,
    UpstreamRefused: Outcome.REFUSED,
    UpstreamNonsense: Outcome.NONSENSE,
}


@contextmanager
def _counted(count: Callable[[Outcome], None]) -> Iterator[None]:
    """Tells `count` how the block ended; a cancelled or broken one counts as internal."""
    outcome = Outcome.INTERNAL
    try:
        yield
        outcome = Outcome.OK
    except BrokerError as error:
        outcome = next((_OUTCOMES[kind] for kind in _OUTCOMES if isinstance(error, kind)), outcome)
        raise
    finally:
        count(outcome)
