"""When an upstream is left alone, and how it is found out that it is well again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.breaker import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    OPENS_AFTER,
    Breaker,
    CredentialRefused,
    NotForThis,
    unwell,
)
from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    HandleExpired,
    InvalidParameters,
    Overloaded,
    Throttled,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.metrics import Metrics
from broker.upstreams.refusals import Busy
from broker.upstreams.transport import BrokenOff, NotSent
from tests.support import VirtualClock

DOWN = UpstreamUnavailable("x", cause="status 500")


class Played:
    """A breaker on a played clock; jitter is always the most there is."""

    def __init__(self, draw: float = 1.0) -> None:
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.breaker = Breaker("acme", clock=self.clock, metrics=self.metrics, draw=lambda: draw)

    @property
    def state(self) -> float | None:
        return self.metrics.registry.get_sample_value("broker_circuit_state", {"upstream": "acme"})

    def shed(self) -> float:
        labels = {"upstream": "acme", "reason": "circuit"}
        return self.metrics.registry.get_sample_value("broker_upstream_shed_total", labels) or 0.0

    def fail(self, times: int = OPENS_AFTER, error: BrokerError = DOWN) -> None:
        for _ in range(times):
            self.breaker.bad(self.breaker.enter(), error)

    def refusal(self) -> BrokerError:
        with pytest.raises(BrokerError) as caught:
            self.breaker.enter()
        return caught.value


def test_it_opens_after_five_failures_in_a_row() -> None:
    """Four are chance, and a good answer between them begins a new row; the fifth opens it."""
    told = Played()
    told.fail(4)
    told.breaker.good(told.breaker.enter())
    told.fail(4)
    assert (told.state, told.shed()) == (CLOSED, 0)
    told.fail(1)
    assert told.state == OPEN
    error = told.refusal()
    assert (type(error), error.cause, error.retry_after) == (UpstreamUnavailable, "circuit open", 1)
    assert told.shed() == 1


def test_what_is_neither_does_not_count() -> None:
    """Refused contents and cancelled calls neither end a row of failures nor make it longer."""
    told = Played()
    for _ in range(4):
        told.fail(1)
        told.breaker.neither(told.breaker.enter())
    assert told.state == CLOSED
    told.fail(1)
    assert told.state == OPEN


def test_each_refusal_is_an_error_of_its_own() -> None:
    """One instance that thousands raise would gather all their frames."""
    told = Played()
    told.fail()
    assert told.refusal() is not told.refusal()


def test_a_wrong_credential_is_told_as_one() -> None:
    """Where refused credentials opened it the problem stays "refused", as somebody must be paged."""
    told = Played()
    told.fail(error=CredentialRefused("x"))
    error = told.refusal()
    assert (type(error), error.status, error.retry_after) == (UpstreamRefused, 502, 1)


def test_one_probe_goes_out_when_its_time_is_over() -> None:
    """While it is out the others are refused at once; when it is good all may go."""
    told = Played()
    told.fail()
    told.clock.pass_(0.999)
    assert told.refusal().retry_after == pytest.approx(0.001)
    told.clock.pass_(0.001)
    probe = told.breaker.enter()
    assert told.state == HALF_OPEN
    assert told.refusal().retry_after == 1
    told.breaker.good(probe)
    assert told.state == CLOSED
    assert {told.breaker.enter() for _ in range(9)} == {told.breaker.enter()}


def test_a_probe_that_fails_opens_it_for_longer() -> None:
    """1, 2, 4 … 60 seconds at the most; a good probe begins anew."""
    told = Played()
    told.fail()
    waits = []
    for _ in range(8):
        wait = told.refusal().retry_after
        assert wait is not None
        waits.append(wait)
        told.clock.pass_(wait)
        told.fail(1)
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])
    told.clock.pass_(60)
    told.breaker.good(told.breaker.enter())
    told.fail()
    assert told.refusal().retry_after == 1


def test_one_who_makes_pauses_is_not_made_to_wait_twice() -> None:
    """Open, it lets each call of theirs out as a probe, but never two side by side."""
    told = Played()
    told.breaker = Breaker(
        "acme", clock=told.clock, metrics=told.metrics, draw=lambda: 1.0, paced=True
    )
    told.fail()
    for _ in range(3):
        assert told.state == OPEN
        probe = told.breaker.enter()
        assert (told.state, told.refusal().retry_after) == (HALF_OPEN, 1)
        told.breaker.bad(probe, DOWN)
    told.breaker.good(told.breaker.enter())
    assert told.state == CLOSED


def test_replicas_do_not_probe_together() -> None:
    """The same opening lasts from half as long to as long."""
    waits = []
    for draw in (0.0, 0.5, 1.0):
        told = Played(draw)
        told.fail()
        waits.append(told.refusal().retry_after)
    assert waits == [0.5, 0.75, 1.0]


def test_a_probe_that_shows_nothing_frees_its_place() -> None:
    """One that is cancelled, or whose content is refused: the next caller probes at once."""
    told = Played()
    told.fail()
    told.clock.pass_(1)
    told.breaker.neither(told.breaker.enter())
    assert told.state == HALF_OPEN
    told.breaker.good(told.breaker.enter())
    assert told.state == CLOSED


def test_a_call_from_before_changes_nothing() -> None:
    """What began before it opened neither closes it, nor opens it again after a good probe, nor
    ends another's probe; a probe that was given up does not end the next one's."""
    told = Played()
    old = [told.breaker.enter() for _ in range(9)]
    told.fail()
    told.breaker.good(old.pop())
    assert told.state == OPEN
    told.clock.pass_(1)
    given_up = told.breaker.enter()
    told.breaker.neither(given_up)
    probe = told.breaker.enter()
    told.breaker.neither(given_up)
    told.breaker.neither(old.pop())
    told.breaker.bad(old.pop(), DOWN)
    told.refusal()
    told.breaker.good(probe)
    for ticket in old:
        told.breaker.bad(ticket, DOWN)
    assert told.state == CLOSED


def test_a_failure_that_several_calls_show_together_counts_once() -> None:
    """Five of them open it; while a probe is out, or it is open, they are no news; where the probe
    itself showed nothing, they open it again."""
    told = Played()
    error = CredentialRefused("x")
    for _ in range(OPENS_AFTER - 1):
        told.breaker.failed(error)
    assert told.state == CLOSED
    told.breaker.failed(error)
    told.breaker.failed(error)
    assert told.refusal().retry_after == 1
    told.clock.pass_(1)
    probe = told.breaker.enter()
    told.breaker.failed(error)
    assert told.state == HALF_OPEN
    told.breaker.neither(probe)
    told.breaker.failed(error)
    assert (told.state, told.refusal().retry_after) == (OPEN, 2)


def test_hope_moves_a_probe_ahead() -> None:
    """What opened for refused credentials may be probed at once when one was replaced: by one call,
    as ever, and where that is refused it stays open for longer. Neither another's probe, nor what
    is closed or opened for another reason, is touched."""
    told = Played()
    told.breaker.hope()
    told.fail(error=DOWN)
    told.breaker.hope()
    assert told.refusal().retry_after == 1
    told.clock.pass_(1)
    told.breaker.good(told.breaker.enter())
    told.breaker.hope()
    assert told.state == CLOSED
    told.fail(error=CredentialRefused("x"))
    told.breaker.hope()
    told.fail(1, CredentialRefused("x"))
    assert told.refusal().retry_after == 2
    told.breaker.hope()
    probe = told.breaker.enter()
    told.breaker.hope()
    assert told.refusal().retry_after == 1
    told.breaker.good(probe)
    assert told.state == CLOSED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamUnavailable("x"), True), (NotSent("x"), True), (UpstreamTimeout("x"), True),
        (UpstreamNonsense("x"), True), (BrokenOff("x"), True), (CredentialRefused("x"), True),
        (UpstreamRefused("x"), False), (Throttled("x"), False), (NotForThis("x"), False),
        (Busy("x"), False), (InvalidParameters("x"), False), (HandleExpired("x"), False),
        (ActionNotAllowed("x"), False), (Overloaded("x"), False),
    ],
)  # fmt: skip
def test_what_says_that_an_upstream_is_unwell(error: BrokerError, expected: bool) -> None:
    """Not what a caller could bring about with one request, and not a 429."""
    assert unwell(error) is expected


STEPS = st.lists(
    st.one_of(
        st.just(("enter", 0.0)),
        st.tuples(st.sampled_from(["good", "bad", "neither", "bad"]), st.floats(0, 1)),
        st.tuples(st.just("pass"), st.sampled_from([0.3, 1.0, 5.0, 61.0])),
        st.just(("failed", 0.0)),
        st.just(("hope", 0.0)),
    ),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(STEPS, st.booleans())
def test_whatever_the_order_of_ends_there_is_one_probe_at_most(
    steps: list[Any], dead: bool
) -> None:
    """However calls end and time passes: while it is not closed, of the calls let out since it
    opened at most one has not ended; and a minute after all have ended, one is let out."""
    told = Played()
    out: list[tuple[int, bool]] = []  # the ticket, and whether it was let out as a probe
    for what, number in steps:
        if what == "enter":
            was_closed = told.state == CLOSED
            try:
                ticket = told.breaker.enter()
            except (UpstreamUnavailable, UpstreamRefused):
                assert not was_closed
                continue
            out.append((ticket, not was_closed))
        elif what == "pass":
            told.clock.pass_(number)
        elif what == "failed":
            told.breaker.failed(DOWN if dead else CredentialRefused("x"))
        elif what == "hope":
            told.breaker.hope()
        elif out:
            ticket, _ = out.pop(int(number * (len(out) - 1)))
            if what == "bad":
                told.breaker.bad(ticket, DOWN if dead else CredentialRefused("x"))
            else:
                getattr(told.breaker, what)(ticket)
        assert sum(probe for _, probe in out) <= 1
        if told.state == OPEN:
            assert not any(probe for _, probe in out)
    for ticket, _ in out:
        told.breaker.neither(ticket)
    told.clock.pass_(61)
    told.breaker.good(told.breaker.enter())
    assert told.state == CLOSED
