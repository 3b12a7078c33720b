"""The overload benchmark's own sums: an instrument that misses a wrong answer proves nothing."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable

import pytest

from benchmarks.overload import books
from benchmarks.overload.books import Answer, Asked, Books, Kind, Outcome, Pair
from benchmarks.overload.figures import Tally, percentile, spread, well_again
from benchmarks.overload.lines import read
from benchmarks.overload.mix import FEWEST, MOST, SHARES, Mix, jwt

GOOD = Answer(200, token="token", handle="handle")
REFUSED = Answer(503, retry_after=True)


def asked(kind: Kind, subject: int = 1, pair: Pair | None = None) -> Asked:
    return Asked(kind, subject, b"", "handle", pair)


def pairs(kind: Kind, *answers: Answer) -> tuple[Books, list[Outcome]]:
    """What the books say of two requests that must get one token."""
    judge, pair = Books(), Pair()
    return judge, [judge.judge(asked(kind, pair=pair), answer) for answer in answers]


# --- wrong answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "why"),
    [
        (Kind.GONE, GOOD, books.ROTATED),
        (Kind.GONE, Answer(404), "404 to gone"),
        (Kind.MINT, Answer(503), books.BARE),
        (Kind.GONE, Answer(503), books.BARE),
        (Kind.MINT, Answer(500), "status 500"),
        (Kind.END, Answer(504), "status 504"),
        (Kind.ROTATE, Answer(410), "410 to rotate"),
        (Kind.END, Answer(200), "200 to end"),
        (Kind.MINT, Answer(401), "401 to mint"),
        (Kind.ROTATE, Answer(200, token="token"), "no token or no handle in the answer to rotate"),
    ],
)
def test_a_planted_wrong_answer_is_found(kind: Kind, answer: Answer, why: str) -> None:
    """Each has its name, and is counted once."""
    judge = Books()
    assert judge.judge(asked(kind), answer) is Outcome.WRONG
    assert judge.wrong == {why: 1}


@pytest.mark.parametrize(
    ("kind", "answer", "outcome"),
    [
        (Kind.MINT, GOOD, Outcome.RIGHT),
        (Kind.ROTATE, GOOD, Outcome.RIGHT),
        (Kind.END, Answer(204), Outcome.RIGHT),
        (Kind.GONE, Answer(410), Outcome.RIGHT),
        *((kind, REFUSED, Outcome.REFUSED) for kind in Kind),
    ],
)
def test_what_the_contract_allows_is_not_wrong(
    kind: Kind, answer: Answer, outcome: Outcome
) -> None:
    """Right answers, and refusals that say when to come again."""
    judge = Books()
    assert judge.judge(asked(kind), answer) is outcome
    assert not judge.wrong


@pytest.mark.parametrize(("kind", "why"), [(Kind.TAB, books.TWO), (Kind.REPEAT, books.OTHER)])
def test_two_tokens_where_there_must_be_one_are_found(kind: Kind, why: str) -> None:
    """Of two tabs, and of a repeat; one token, or one refusal, is as it should be."""
    other = Answer(200, token="another", handle="another")
    judge, outcomes = pairs(kind, GOOD, other)
    assert (outcomes, judge.wrong) == ([Outcome.RIGHT, Outcome.WRONG], {why: 1})
    judge, outcomes = pairs(kind, GOOD, GOOD)
    assert outcomes == [Outcome.RIGHT] * 2
    judge, outcomes = pairs(kind, REFUSED, other)
    assert (outcomes, judge.wrong) == ([Outcome.REFUSED, Outcome.RIGHT], {})


def test_a_token_of_another_caller_is_found() -> None:
    """Whoever got it first owns it."""
    judge = Books()
    assert judge.judge(asked(Kind.MINT, 1), GOOD) is Outcome.RIGHT
    assert judge.judge(asked(Kind.MINT, 2), GOOD) is Outcome.WRONG
    assert judge.wrong == {books.STRANGER: 1}


def test_a_cut_connection_is_wrong_unless_its_replica_was_killed() -> None:
    """The killed one's cuts are losses."""
    judge = Books()
    assert judge.cut(excused=True) is Outcome.LOST
    assert not judge.wrong
    assert judge.cut(excused=False) is Outcome.WRONG
    assert judge.wrong == {books.CUT: 1}


# --- answers as they come over the wire -------------------------------------------------------


def test_answers_are_read_whole_and_not_before() -> None:
    """Status, Retry-After, token and handle; an end has no body and no length."""
    body = json.dumps({"session_token": "t", "handle": "h"}).encode()
    whole = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    assert read(whole) == Answer(201, token="t", handle="h")
    assert all(read(whole[:cut]) is None for cut in range(len(whole)))
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n") == Answer(204)
    told = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\ncontent-length: 0\r\n\r\n"
    assert read(told) == REFUSED
    assert read(told.replace(b"Retry-After: 2\r\n", b"")) == Answer(503)


# --- what is asked ----------------------------------------------------------------------------


def answered(mix: Mix, count: int, outcome: Outcome = Outcome.RIGHT) -> Iterable[Asked]:
    """So many requests, each answered as soon as it was made."""
    for n in range(count):
        one = mix.next()
        answer = Answer(200, token=f"t{n}", handle="" if one.kind is Kind.GONE else f"h{n}")
        mix.came(one, outcome, answer if outcome is Outcome.RIGHT else None)
        yield one


def test_the_mix_is_as_it_is_said_to_be() -> None:
    """Every end is followed by a rotation of its handle, every pair is two, and shares are met."""
    mix = Mix("k" * 32, seed=1, people=20)
    list(answered(mix, 1000))  # until there are handles
    counted = dict.fromkeys(Kind, 0)
    for one in answered(mix, 23_000):
        counted[one.kind] += 1
    begun = {**counted, Kind.TAB: counted[Kind.TAB] / 2, Kind.REPEAT: counted[Kind.REPEAT] / 2}
    assert abs(counted[Kind.GONE] - counted[Kind.END]) <= 1
    total = sum(begun[kind] for kind in SHARES)
    for kind, share in SHARES.items():
        assert begun[kind] / total == pytest.approx(share / 100, abs=0.012)


def test_an_end_is_followed_by_its_own_handle_and_pairs_by_their_other_half() -> None:
    """A follow-up takes the next place."""
    mix = Mix("k" * 32, seed=2, people=20)
    list(answered(mix, 1000))
    seen = list(answered(mix, 2000))
    for one, following in itertools.pairwise(seen):
        if one.kind is Kind.END:
            assert (following.kind, following.handle) == (Kind.GONE, one.handle)
            assert b"/v1/sessions/end" in one.data
            assert b"/v1/sessions/rotate" in following.data
    by_pair: dict[int, list[Asked]] = {}
    for one in seen:
        if one.pair is not None:
            by_pair.setdefault(id(one.pair), []).append(one)
    assert {len(both) for both in list(by_pair.values())[:-1]} == {2}
    assert all(one.data == other.data for one, other in list(by_pair.values())[:-1])


def test_a_refused_rotation_keeps_its_handle_and_a_refused_end_does_not() -> None:
    """Who was refused goes on with what they have; of an end nobody knows."""
    mix = Mix("k" * 32, seed=3, people=20)
    list(answered(mix, 4 * MOST))
    kinds = [one.kind for one in answered(mix, 12_000, Outcome.REFUSED)]
    assert Kind.GONE not in kinds
    assert kinds.count(Kind.ROTATE) > MOST  # more than there were, had each been used up


def test_without_handles_everybody_mints() -> None:
    """The first of a run have nothing to rotate."""
    mix = Mix("k" * 32, seed=4, people=20)
    kinds = {one.kind for one in answered(mix, FEWEST // 2)}
    assert kinds <= {Kind.MINT, Kind.REPEAT}


def test_callers_have_jwts_of_their_own() -> None:
    """Signed, and each a merchant of their own."""
    claims = [jwt("k" * 32, subject).split(".")[1] for subject in (1, 2)]
    merchants = {json.loads(base64.urlsafe_b64decode(one + "=="))["merchant_id"] for one in claims}
    assert len(merchants) == 2


# --- figures ----------------------------------------------------------------------------------


def test_percentiles_are_values_that_were_there() -> None:
    """By nearest rank; none of nothing."""
    ordered = [float(n) for n in range(1, 1001)]
    assert [percentile(ordered, share) for share in (0.5, 0.99, 0.999, 1.0)] == [
        500,
        990,
        999,
        1000,
    ]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.999) == 7.0
    assert percentile([], 0.5) is None
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "p99.9": 3.0, "slowest": 3.0}


def test_a_phase_tells_rates_shares_and_times() -> None:
    """Of what was due in it; goodput of what arrived in it."""
    tally = Tally(rate=4.0, seconds=2.0, began=100.0)
    assert (tally.holds(99.9), tally.holds(100.0), tally.holds(102.0)) == (False, True, False)
    came = [
        (Kind.ROTATE, Outcome.RIGHT, 0.1),
        (Kind.TAB, Outcome.WRONG, 0.1),
        (Kind.MINT, Outcome.RIGHT, 3.0),
        (Kind.MINT, Outcome.REFUSED, 0.01),
        (Kind.REPEAT, Outcome.GAVE_UP, 10.0),
        (Kind.MINT, Outcome.LOST, 0.2),
    ]
    for kind, outcome, took in came:
        one = asked(kind)
        one.due = 100.5
        tally.sent[kind] += 1
        tally.came(one, outcome, took)
    tally.arrived = 1
    told = tally.figures()
    assert (told["sent"], told["goodput"], told["good_in_time"]) == (6, 0.5, 0.5)
    assert (told["right"], told["refused"], told["wrong"], told["lost"], told["gave_up"]) == (
        2, 1, 1, 1, 1,
    )  # fmt: skip
    assert told["answered"]["slowest"] == 3.0
    assert told["refusals"]["p50"] == 0.01
    assert (told["share_held"], told["share_first"]) == (0.5, 0.25)
    json.dumps(told)


def test_well_again_is_from_when_everything_was_good_for_a_while() -> None:
    """One good answer between bad ones is no recovery; nor are bad ones to the end."""
    every = [n / 100 for n in range(600)]
    assert well_again([(due, True) for due in every], 6.0) == 0.0
    assert well_again([(due, due > 1.6) for due in every], 6.0) == 1.75
    assert well_again([(due, due > 3.1 or 1.0 < due < 2.0) for due in every], 6.0) == 3.25
    assert well_again([(due, False) for due in every], 6.0) is None
    assert well_again([], 6.0) is None
