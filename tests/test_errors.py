"""Problems: the contract's table, and nothing private in a public face."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from broker import errors
from broker.errors import BrokerError, ConfigError, Fault, Unauthenticated, problem_types

CONTRACT = {
    "malformed-request": 400,
    "unauthenticated": 401,
    "not-permitted": 403,
    "origin-not-allowed": 403,
    "unknown-profile": 404,
    "handle-expired": 410,
    "rotation-not-supported": 409,
    "action-not-allowed": 409,
    "request-too-large": 413,
    "unsupported-media-type": 415,
    "invalid-parameters": 422,
    "rate-limited": 429,
    "upstream-refused": 502,
    "upstream-nonsense": 502,
    "upstream-unavailable": 503,
    "overloaded": 503,
    "upstream-timeout": 504,
}
BEYOND_IT = {
    "not-found": 404,  # no such path
    "method-not-allowed": 405,
    "request-timeout": 408,  # a body that does not come
    "min-fresh-not-met": 412,  # Cache-Control: min-fresh
    "internal-error": 500,
}


def _leaves(kind: type[BrokerError] = BrokerError) -> Iterator[type[BrokerError]]:
    """Those of the tree; what a room derives from one for its own use is the same problem."""
    below = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    for one in below:
        yield from _leaves(one)
    if not below:
        yield kind


def test_the_contract_has_every_problem_with_its_status() -> None:
    """Slugs and statuses are the contract's, and those that HTTP itself makes necessary."""
    assert {kind.slug: kind.status for kind in problem_types()} == CONTRACT | BEYOND_IT


def test_no_two_problems_share_a_slug_or_a_title() -> None:
    """Each leaf of the tree is one problem type, with words of its own."""
    leaves = list(_leaves())
    assert sorted(leaf.slug for leaf in leaves) == sorted(CONTRACT | BEYOND_IT)
    assert len({leaf.title for leaf in leaves}) == len(leaves)
    assert all(leaf.title and leaf.title[0].isupper() for leaf in leaves)


def test_the_tree_is_the_one_in_the_docstring() -> None:
    """The drawing names every leaf with its status."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "── " in line]
    drawn = {line.split("── ")[1].split()[0]: line for line in lines}
    for leaf in _leaves():
        assert str(leaf.status) in drawn[leaf.__name__], leaf


def test_callers_mend_4xx_and_upstreams_cause_502_to_504() -> None:
    """The branch of the tree says whose fault it is, and agrees with the status."""
    for kind in problem_types():
        if issubclass(kind, errors.CallerError):
            assert 400 <= kind.status < 500
        elif issubclass(kind, errors.UpstreamError):
            assert kind.status in (502, 503, 504)
        else:
            assert kind.status in (500, 503)


def test_unauthenticated_has_one_text_for_every_cause() -> None:
    """The public face of two causes is the same; the cause goes to the log."""
    expired, unknown = Unauthenticated(cause="expired"), Unauthenticated(cause="no such key")
    assert expired.detail == unknown.detail == "Valid credentials are required."
    assert (str(expired), str(unknown)) == ("expired", "no such key")
    assert "detail" not in inspect.signature(Unauthenticated).parameters


def test_a_config_error_tells_every_fault() -> None:
    """Both faults, each with its path, are in its message and its `faults`."""
    faults = [Fault("/callers", "first"), Fault("", "second")]
    error = ConfigError(faults)
    assert (str(error), error.faults) == ("/callers: first; /: second", tuple(faults))
    assert not isinstance(error, BrokerError)
