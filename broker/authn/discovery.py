"""Where an issuer publishes its keys, asked of the issuer itself; and the fetching of them.

OpenID Connect Discovery first, RFC 8414 second. Must never believe a document that speaks for
another issuer, nor fetch keys over a network in the clear.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from broker.authn.keysets import KeySet, read_keys
from broker.authn.proof import Asking, read_object, unavailable
from broker.errors import UpstreamUnavailable
from broker.model import JSON
from broker.schedule import Clock
from broker.strict import Unreadable
from broker.urls import Url, is_loopback

_ACCEPT = {"Accept": "application/json"}
_ACCEPT_KEYS = {"Accept": "application/jwk-set+json, application/json"}
_URL: TypeAdapter[str] = TypeAdapter(Url)


class KeyFetch:
    """Loads a key set from `jwks_url`, or from where the issuer says, all within one budget."""

    def __init__(self, issuer: str, jwks_url: str | None, asking: Asking, clock: Clock) -> None:
        """Raises ValueError where the issuer is to be asked and is no URL."""
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._asking = asking
        self._clock = clock
        self._documents = [] if jwks_url else documents_of(issuer)

    async def __call__(self) -> KeySet:
        """Raises UpstreamUnavailable, UpstreamTimeout."""
        deadline = self._clock.monotonic() + self._asking.budget
        url = self._jwks_url or await self._discovered(deadline)
        answer = await self._asking.ask(
            "keys", "GET", url, _ACCEPT_KEYS, within=self._left(deadline)
        )
        if answer.status != 200:
            raise unavailable(f"key set: HTTP status {answer.status}")
        try:
            return read_keys(answer.body)
        except Unreadable as exc:
            raise unavailable(f"key set: {exc.reason}") from None

    async def _discovered(self, deadline: float) -> str:
        """`jwks_uri` of the first document that is one; a server may answer 200 to any path."""
        failure: UpstreamUnavailable | None = None
        for url in self._documents:
            answer = await self._asking.ask(
                "discovery", "GET", url, _ACCEPT, within=self._left(deadline)
            )
            if answer.status != 200:
                failure = failure or unavailable(f"discovery: HTTP status {answer.status}")
                continue
            try:
                return self._jwks_uri(read_object(answer.body))
            except Unreadable as exc:
                failure = unavailable(f"discovery: {exc.reason}")
        raise failure or unavailable("discovery: no document")

    def _jwks_uri(self, document: dict[str, JSON]) -> str:
        if document.get("issuer") != self._issuer:
            raise Unreadable("the document is another issuer's")
        try:
            url = _URL.validate_python(document.get("jwks_uri"), strict=True)
        except ValidationError:
            raise Unreadable("jwks_uri is no URL") from None
        there, here = urlsplit(url), urlsplit(self._issuer)
        host = there.hostname or ""
        same = here.scheme == "http" and host == here.hostname
        if there.scheme != "https" and not is_loopback(host) and not same:
            raise Unreadable("jwks_uri is not https")
        return url

    def _left(self, deadline: float) -> float:
        return max(0.1, deadline - self._clock.monotonic())


def documents_of(issuer: str) -> list[str]:
    """Where an issuer's metadata may be. Raises ValueError where it is no URL.

    OpenID appends to the issuer, RFC 8414 §3.1 puts its part in front of the path.
    """
    url = _URL.validate_python(issuer, strict=True)  # ValidationError is a ValueError
    parts = urlsplit(url)
    if parts.query:
        raise ValueError("an issuer has no query")
    path = parts.path.rstrip("/")
    root = f"{parts.scheme}://{parts.netloc}"
    return [
        f"{root}{path}/.well-known/openid-configuration",
        f"{root}/.well-known/oauth-authorization-server{path}",
    ]
