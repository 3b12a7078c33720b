"""Where a shared store is, from its URL, and the client that reaches it.

The URL holds a password: no fault repeats any of it. The only room that knows the client library,
which is an optional extra, and what its defaults would do to a deadline: ten retries with back-off,
five seconds for each wait, a new TLS context (the system's store read anew, on the loop) for each
connection, which trusts that store beside the file it is given.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from broker.errors import ConfigError, Fault
from broker.model import Secret

MOST_CONNECTIONS = 64
"""To one server. Each carries one round trip at a time: 0.1 ms on the wire, and some turns of a
loop that may be busy for 10 ms in each, so 1,600 a second at the worst."""
_SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "unix": ("unix", False),
}
_OPTIONS = {
    "single": {"db"},
    "unix": {"db"},
    "cluster": set[str](),
    "sentinel": {"db", "service", "sentinel_username", "sentinel_password"},
}
_PORTS = {"single": 6379, "cluster": 6379, "sentinel": 26379}
_NOTHING = Secret("")
_USUAL: dict[str, Any] = {
    "protocol": 2,  # with 3 the library expects notices on every connection, see `dialer`
    "driver_info": None,
    # The deadline is around the call: these would cost a task each, and count our own stalls.
    "socket_timeout": None,
    "socket_connect_timeout": None,
}


@dataclass(frozen=True, slots=True)
class Address:
    """kind: single, unix, sentinel or cluster. hosts: of the server, the sentinels, or nodes to
    learn the others from. service: the sentinels' name of the master."""

    kind: str
    tls: bool
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    username: str = ""
    password: Secret = _NOTHING
    service: str = ""
    sentinel_username: str = ""
    sentinel_password: Secret = _NOTHING


def parse_address(text: str) -> Address:
    """Raises ValueError with a text that repeats nothing of the URL."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower().replace("valkey", "redis", 1)
    if not separator or scheme not in _SCHEMES:
        raise ValueError(
            "a URL is wanted that begins with redis://, rediss://, redis+sentinel://, "
            "rediss+sentinel://, redis+cluster://, rediss+cluster:// or unix://"
        )
    if "#" in rest or not rest.isprintable() or " " in rest:
        raise ValueError("has a character that must be percent-encoded")
    kind, tls = _SCHEMES[scheme]
    place, _, query = rest.partition("?")
    options = _options(kind, query)
    authority, slash, path = place.rpartition("@")[2].partition("/")
    username, password = _userinfo(place.rpartition("@")[0])
    if kind == "unix":
        if authority or not path:
            raise ValueError("unix:// is followed by the absolute path of a socket")
        hosts, number = [], options.get("db", "")
    else:
        hosts = [_host(item, _PORTS[kind]) for item in authority.split(",")]
        number = path or options.get("db", "")
    if kind == "single" and len(hosts) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    if kind == "sentinel" and not options.get("service"):
        raise ValueError("sentinels need ?service=, their name of the master")
    return Address(
        kind,
        tls,
        tuple(hosts),
        unquote(slash + path) if kind == "unix" else "",
        _database(kind, number),
        username,
        password,
        options.get("service", ""),
        options.get("sentinel_username", ""),
        Secret(options.get("sentinel_password", "")),
    )


def _options(kind: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("what stands after ? is not name=value") from None
    options = dict(pairs)
    if not set(options) <= _OPTIONS[kind] or len(options) < len(pairs):
        known = ", ".join(sorted(_OPTIONS[kind])) or "none"
        raise ValueError(f"has an option that is not known here, or twice; known: {known}")
    return options


def _userinfo(text: str) -> tuple[str, Secret]:
    if "@" in text or "/" in text:
        raise ValueError("a user or password has a character that must be percent-encoded")
    username, _, password = text.partition(":")
    return unquote(username), Secret(unquote(password))


def _host(text: str, usual: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        well = bool(bracket) and (port == "" or port.startswith(":"))
        port = port[1:]
    else:
        host, _, port = text.partition(":")
        well = ":" not in port
    if not well or not host:
        raise ValueError("a host is wanted: name, name:port or [IPv6]:port, several with commas")
    if port == "":
        return host, usual
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError("has a port that is no number from 1 to 65535")
    return host, int(port)


def _database(kind: str, text: str) -> int:
    if text == "":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError("the number of a database is wanted after the host's /")
    if kind == "cluster" and int(text):
        raise ValueError("a cluster has the database 0 only")
    return int(text)


@dataclass(frozen=True, slots=True)
class Line:
    """A client with connections of its own, which `close` ends."""

    client: Any
    close: Callable[[], Awaitable[None]]


def dialer(address: Address, *, timeout: float, ca_file: str | None) -> Callable[[], Line]:
    """Makes clients; a new one connects to where the name, or the sentinels' master, is now.
    Nothing is sent yet. Raises ConfigError: no library, or no authorities to trust.

    RESP 2, as with 3 the library expects notices on every connection, and no more refuses one on
    which there is something to read before it is asked."""
    try:
        from redis.asyncio import connection  # noqa: PLC0415  (an optional extra)
        from redis.asyncio.sentinel import SentinelManagedConnection  # noqa: PLC0415  (the same)
    except ImportError:
        reason = "needs the extra: pip install token-broker[redis]"
        raise ConfigError([Fault("/state", reason)]) from None
    to_server: dict[str, Any] = {
        "username": address.username or None,
        "password": address.password.reveal() or None,
        **_USUAL,
    }
    context = _trusting(ca_file) if address.tls else None
    if address.kind == "cluster":
        kind = _over(connection.Connection, context)
        return lambda: _cluster(address.hosts, kind, to_server, timeout)
    if address.kind == "sentinel":
        kinds = [
            _over(kind, context) for kind in (SentinelManagedConnection, connection.Connection)
        ]
        to_sentinel = {**_USUAL, **_patience(address, timeout)}
        return lambda: _sentinel(address, kinds, to_server, to_sentinel)
    to_server |= {"db": address.db}
    if address.kind == "unix":
        kind = connection.UnixDomainSocketConnection
        to_server |= {"path": address.path}
    else:
        kind = _over(connection.Connection, context)
        to_server |= {"host": address.hosts[0][0], "port": address.hosts[0][1]}
    pool = _turning(connection.ConnectionPool)
    return lambda: _pooled(pool(kind, MOST_CONNECTIONS, **to_server))


def _trusting(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError:
        reason = "cannot be read as a file of certificates (PEM)"
        raise ConfigError([Fault("/state/ca_file", reason)]) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _over(kind: Any, context: ssl.SSLContext | None) -> Any:
    """This kind of connection, over TLS where there is a context, which all of them share."""
    if context is None:
        return kind

    class Encrypted(kind):  # type: ignore[misc]
        def _connection_arguments(self) -> Any:
            return {**super()._connection_arguments(), "ssl": context}

    return Encrypted


def _turning(kind: Any) -> Any:
    """This kind of pool, which hands out the connection that idled longest, as a cluster's client
    does: so that none is left out for long, whose server is not behind the address any more."""

    class Turning(kind):  # type: ignore[misc]
        def get_available_connection(self) -> Any:
            idle = self._available_connections
            if idle:
                idle.append(idle.pop(0))
            return super().get_available_connection()

    return Turning


def _pooled(pool: Any, also: Callable[[], Awaitable[None]] | None = None) -> Line:
    from redis.asyncio import Redis  # noqa: PLC0415  (an optional extra)

    client = Redis.from_pool(pool)

    async def close() -> None:
        await client.aclose()
        if also is not None:
            await also()

    return Line(client, close)


def _patience(address: Address, timeout: float) -> dict[str, float]:
    """They are asked in turn, so that a mute one must leave time for the others."""
    share = timeout / (len(address.hosts) + 1)
    return {"socket_timeout": share, "socket_connect_timeout": share}


def _sentinel(
    address: Address, kinds: Sequence[Any], to_server: dict[str, Any], to_sentinel: dict[str, Any]
) -> Line:
    from redis.asyncio import ConnectionPool, Redis, sentinel  # noqa: PLC0415  (an optional extra)

    untyped: Any = sentinel
    to_sentinel = to_sentinel | {
        "username": address.sentinel_username or None,
        "password": address.sentinel_password.reveal() or None,
    }
    manager = untyped.Sentinel([])
    manager.sentinels = [
        Redis.from_pool(ConnectionPool(kinds[1], host=host, port=port, **to_sentinel))
        for host, port in address.hosts
    ]
    pool = _turning(untyped.SentinelConnectionPool)(
        address.service,
        manager,
        connection_class=kinds[0],
        max_connections=MOST_CONNECTIONS,
        db=address.db,
        **to_server,
    )
    return _pooled(pool, manager.aclose)


def _cluster(
    hosts: Sequence[tuple[str, int]], kind: Any, to_server: dict[str, Any], timeout: float
) -> Line:
    from redis.asyncio.cluster import ClusterNode, RedisCluster  # noqa: PLC0415  (an optional extra)
    from redis.asyncio.retry import Retry  # noqa: PLC0415  (the same)
    from redis.backoff import NoBackoff  # noqa: PLC0415  (the same)

    # Only a wait that the library itself gave up makes it ask where the slots are now.
    patience = {"socket_timeout": timeout * 0.8, "socket_connect_timeout": timeout * 0.8}
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        require_full_coverage=False,  # a part that is lost is no reason to leave the others
        retry=Retry(NoBackoff(), 0),
        max_connections=MOST_CONNECTIONS,
        **{**to_server, **patience},
    )
    client.connection_kwargs["connection_class"] = kind
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = kind
    return Line(client, client.aclose)
