"""Card numbers: refused unless a profile says so in words, and then left nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import io
import json
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest
import structlog

import broker.presets
from broker import api
from broker.audit import configure_logging
from broker.errors import BrokerError, Fault
from broker.model import Secret
from broker.state import Vault
from tests.checkout import (
    OTHER_PAN,
    PAN,
    Shop,
    config,
    faults,
    parsed,
    refusal,
    shop,
)
from tests.harness import problem

PANS = (PAN, OTHER_PAN)
CARDS = config(allow_card_numbers=True)
OWN = (Path(broker.presets.__file__).parent / "checkout" / "3ds.yaml").read_text()


def card(number: str = PAN, **more: Any) -> dict[str, Any]:
    return {"type": "card", "number": number, "expiry_month": 12, "expiry_year": 2030, **more}


def run(story: Any, text: str = CARDS, **options: Any) -> None:
    async def whole() -> None:
        async with shop(text, **options) as s:
            await story(s)

    asyncio.run(whole())


# --- without a yes


def test_a_card_in_the_file_needs_a_yes() -> None:
    """Told when the configuration is read, and taken with it."""
    text = {"source": card(), "parameters": {}, "channel_data": None}
    expected = [Fault("/profiles/p/source/type", "'card' needs allow_card_numbers: true")]
    assert faults(config(**text)) == expected
    assert faults(config(**text, allow_card_numbers=False)) == expected
    parsed(config(**text, allow_card_numbers=True).encode())


@pytest.mark.parametrize("changes", [{}, {"allow_card_numbers": False}])
def test_a_card_from_a_request_needs_a_yes(changes: dict[str, Any]) -> None:
    """422 for page and backend, before anything is asked of the upstream; the number is not
    repeated."""

    async def story(s: Shop) -> None:
        for number in PANS:
            for token in (s.token(), s.backend):
                answer = await s.mint(card(number), token=token)
                assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
                assert answer.json()["errors"] == [
                    {
                        "pointer": "/parameters",
                        "reason": "card as /source/type is refused by this profile",
                    }
                ]
                assert number not in answer.text
        assert (s.upstream.requests, s.upstream.tokens) == ([], 0)

    run(story, config(**changes))


@pytest.mark.parametrize("hole", ["${parameters.yes}", "${claims.yes}"])
def test_the_yes_is_the_files_to_say(hole: str) -> None:
    """No parameter and no claim says it."""
    declared = {"yes": {"type": "boolean"}, "source": {"like": "source"}}
    text = config(allow_card_numbers=hole, parameters=declared, channel_data=None)
    expected = Fault("/profiles/p/allow_card_numbers", "is for this file to say: true or false")
    assert faults(text) == [expected]


@pytest.mark.parametrize("yes", ["true", 1, "yes", None, {}])
def test_nothing_but_true_is_a_yes(yes: Any) -> None:
    """Not what looks like it."""
    told = json.loads(config())
    told["profiles"]["p"]["allow_card_numbers"] = yes
    (found,) = faults(json.dumps(told))
    assert found.pointer == "/profiles/p/allow_card_numbers"


@pytest.mark.parametrize(
    ("old", "new", "rotation"),
    [
        ("reuse: single_use", "reuse: per_caller", {"max_chain": "1h"}),
        ("json: ${data.channel_data}", 'json: {a: "${settings.source}"}', None),
    ],
)
def test_handles_that_would_keep_it_are_refused(
    old: str, new: str, rotation: Any, tmp_path: Path
) -> None:
    """A profile that rotates, or a follow-up call that needs the source, keeps parameters."""
    assert OWN.count(old) == 1
    (tmp_path / "own.yaml").write_text(OWN.replace(old, new))
    changes = {"rotation": rotation} if rotation else {}
    text = config("./own.yaml", allow_card_numbers=True, **changes)
    expected = Fault(
        "/profiles/p/allow_card_numbers", "a handle would have to keep what this lets in"
    )
    assert faults(text, tmp_path) == [expected]
    parsed(config("./own.yaml", **changes).encode(), tmp_path)


def test_a_type_that_a_request_fills_alone_is_no_way_round() -> None:
    """The member that tells variants apart has no hole of its own."""
    source = {"type": "${parameters.t}", "number": "${parameters.n}"}
    text = config(
        source=source, channel_data=None,
        parameters={"t": {"type": "string"}, "n": {"type": "string"}},
    )  # fmt: skip
    assert faults(text) == [Fault("/profiles/p/source", "is not one of the known types")]


def test_a_number_that_is_none_is_refused_without_an_echo() -> None:
    """Also in a profile that takes cards; also one that is nearly good."""

    async def story(s: Shop) -> None:
        for bad in (
            "4242 4242 4242 4242",
            PAN + PAN,
            PAN + "\n",
            4242424242424242,
            [PAN],
            {PAN: 1},
        ):
            answer = await s.mint(card(bad))  # type: ignore[arg-type]
            assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
            assert "4242" not in answer.text
        for bad_card in (card(pan=PAN), {PAN: PAN, **card()}, {**card(), "type": PAN}):
            answer = await s.mint(bad_card)
            assert answer.status_code == 422
            assert PAN not in answer.text
        assert PAN not in json.dumps(s.told.audit)
        assert s.upstream.requests == []

    run(story)


# --- with it, nowhere but upstream


def _echo(status: int) -> httpx2.Response:
    """A refusal that repeats the number wherever something of it could be told."""
    told = {
        "request_id": PAN,
        "error_type": f"card_{PAN}",
        "error_codes": [PAN, f"number_{PAN}", f"a{OTHER_PAN}", int(PAN), {"number": PAN}, "source_number_invalid"],
        "message": PAN,
    }  # fmt: skip
    headers = {"cko-request-id": PAN, "retry-after": PAN, "date": PAN}
    return httpx2.Response(status, json=told, headers=headers)


def _breaks(_request: httpx2.Request) -> httpx2.Response:
    raise RuntimeError("a defect")


UPSTREAMS: dict[str, Callable[[httpx2.Request], httpx2.Response | None]] = {
    "good": lambda _: None,
    **{f"refuses with {n}": functools.partial(lambda n, _: _echo(n), n)
       for n in (400, 401, 403, 404, 408, 409, 422, 429, 500, 503, 302, 199 + 99)},
    "a page": lambda _: httpx2.Response(406, content=f"<html>{PAN}</html>".encode()),
    "nonsense": lambda _: httpx2.Response(201, content=f'{{"id": "{PAN}", '.encode()),
    "no token": lambda _: httpx2.Response(201, json={"number": PAN, "id": PAN}),
    "a list": lambda _: httpx2.Response(201, json=[PAN]),
    "twice": lambda _: httpx2.Response(201, content=f'{{"{PAN}":1,"{PAN}":1}}'.encode()),
    "a bad id": lambda _: httpx2.Response(201, json={"session_secret": "sek", "id": [PAN]}),
    "grouped": lambda _: refusal(422, "n_4242_4242_4242_4242", request_id="4242-4242-4242-4242"),
    "defect": _breaks,
}  # fmt: skip


@contextlib.contextmanager
def _logged() -> Iterator[io.BytesIO]:
    """What the log is told, written as in production."""
    lines = io.BytesIO()
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    levels = {n: logging.getLogger(n).level for n in ("", "uvicorn.error", "asyncio")}
    configure_logging(lines)
    try:
        yield lines
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _texts(root: object, stop: set[int]) -> Iterator[str | bytes]:
    """Every text that can be reached from here, but through code and `stop`."""
    seen, todo = set(stop), [root]
    code = (types.ModuleType, types.FrameType, types.CodeType, type, logging.Logger)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, code):
            continue
        seen.add(id(one))
        if isinstance(one, str | bytes):
            yield one
        elif isinstance(one, types.FunctionType):
            todo += [*(one.__closure__ or ()), *(one.__defaults__ or ())]
        else:
            todo += gc.get_referents(one)
            todo += dict.keys(one) if isinstance(one, dict) else ()  # of texts not told by `gc`


def _held(s: Shop) -> list[str]:
    """Numbers in memory of the app: those that are left of a request are found, if there are any."""
    app: Any = s.told.app
    stop = {id(app._transport), id(app.clock), id(s.told._lines)}
    found = []
    for text in _texts(app, stop):
        found += [
            repr(text)[:80]
            for pan in PANS
            if (pan if isinstance(text, str) else pan.encode()) in text
        ]  # type: ignore[operator]
    return found


def _api(s: Shop) -> Any:
    gate: Any = s.told.app._assembly.public
    return gate._app.routes[0].app._handler.__self__


@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_card_number_is_left_nowhere(name: str) -> None:
    """Not in the answer, the audit line, the log, any metric, the error, or what the app remembers,
    whatever the upstream does with it; also with an Idempotency-Key."""
    errors: list[BrokerError] = []

    def noted(record: Any, error: BrokerError) -> None:
        errors.append(error)
        note(record, error)

    note = api.note

    async def story(s: Shop) -> None:
        s.upstream.answer = UPSTREAMS[name]
        told = []
        for number in PANS:
            for key in ({}, {"idempotency_key": f"key-{number[:4]}"}):
                source = card(number, name="Ada Lovelace", stored=False)
                answer = await s.mint(source, **key)
                told += [answer.text, repr(answer.headers)]
                assert (answer.status_code == 202) == (name == "good")
        sent = [one for one in s.upstream.requests if PAN in one.content.decode()]
        assert sent, "the upstream gets it"
        told += [json.dumps(s.told.audit), s.told.app.metrics.render("")[0].decode()]
        told += [lines.getvalue().decode()]
        for error in errors:
            chain: BaseException | None = error
            while chain is not None:
                told += [repr(chain), str(chain), repr(chain.args), repr(vars(chain))]
                chain = chain.__cause__ or chain.__context__
        assert not [text for text in told for pan in PANS if pan in text]
        assert not [text for text in told if "4242-4242" in text or "4242_4242" in text]
        sent.clear()
        answer = None  # type: ignore[assignment]
        gc.collect()
        assert _held(s) == []

    with mock.patch.object(api, "note", noted), _logged() as lines:
        run(story)


def test_the_search_would_find_one() -> None:
    """In any of the app's memories, however it is held there."""

    async def story(s: Shop) -> None:
        state = _api(s)._minting._state
        for put in (
            lambda: state.answers.here.put("k", {"x": [f"n{PAN}"]}, 60),
            lambda: state.successors.here.put(f"k{PAN}", 1, 60),
            lambda: state.results.here.put("k", (PAN.encode(),), 60),
            lambda: state.events.here.put("k", functools.partial(print, PAN), 60),
            lambda: setattr(_api(s)._chains, "last", {PAN: 1}),
        ):
            assert _held(s) == []
            put()
            assert _held(s)
            for memory in (state.answers, state.successors, state.results, state.events):
                memory.here._items.clear()
            vars(_api(s)._chains).pop("last", None)

    run(story)


def test_a_handle_does_not_hold_it() -> None:
    """Opened with our own key: no parameters, and a digest of nothing that a card has."""

    async def story(s: Shop) -> None:
        seal = _api(s)._chains._seal
        found = []
        for number in PANS:
            handle = seal.open((await s.mint(card(number))).json()["handle"])
            assert handle.parameters == {}
            found.append(handle.bound)
            assert number not in repr(handle)
        token = seal.open((await s.mint()).json()["handle"])
        assert {*found} == {token.bound}

    run(story)


def test_what_is_remembered_for_a_key_is_no_digest_of_the_number() -> None:
    """A plain digest of a short text can be turned back: this one is made with the sealing keys, and
    says nothing to who has others."""

    async def story(s: Shop) -> None:
        assert (await s.mint(card(), idempotency_key="k")).status_code == 202
        assert (await s.mint(card(), idempotency_key="k")).status_code == 202
        assert (await s.mint(card(OTHER_PAN), idempotency_key="k")).status_code == 422
        assert len(s.upstream.calls) == 1
        state = _api(s)._minting._state
        (item,) = state.answers.here._items.values()
        digest, other = item.value.body, Vault([Secret("another ring's key of 32 bytes ..")])
        assert len(digest.partition(":")[2]) >= 32
        assert state.vault.same(digest, "anything") is False
        assert other.same(digest, "anything") is None

    run(story)
