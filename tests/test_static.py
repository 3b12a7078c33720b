"""What is served as it is: the module for browsers, and the pages of the demo."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker.cli import main
from broker.config import parse
from broker.demo import demo_config, demo_pages
from broker.openapi import document
from broker.static import CLIENT, Static, client_files, names
from tests.harness import CONFIG, ORIGIN, Broker, broker, problem
from tests.test_minting import with_broker
from tests.test_serving import Process, process

ROOT = Path(__file__).parents[1]
MODULE, TYPES = "/v1/client.js", "/v1/client.d.ts"
FILES = client_files()
TAG = FILES[MODULE].plain.etag.decode()
PUBLIC = {
    "cache-control": "max-age=300",
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}
AS_IT_IS = {"accept-encoding": "identity"}


def _headers(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "x-request-id"}


@pytest.mark.parametrize(
    ("path", "kind"), [(MODULE, "text/javascript"), (TYPES, "text/plain")], ids=str
)
def test_the_module_is_served_as_it_lies_there(path: str, kind: str) -> None:
    """Module and types come byte for byte, as UTF-8 of their kind, with a strong ETag, for five
    minutes, for any page; and with no other header."""

    async def story() -> None:
        async with broker() as told:
            answer = await told.client.get(path, headers=AS_IT_IS)
            body = (CLIENT / Path(path).name).read_bytes()
            assert (answer.status_code, answer.content) == (200, body)
            assert _headers(answer) == PUBLIC | {
                "content-type": f"{kind}; charset=utf-8",
                "content-length": str(len(body)),
                "etag": FILES[path].plain.etag.decode(),
            }
            assert re.fullmatch(r'"[\w-]{20,}"', answer.headers["etag"])

    asyncio.run(story())


@pytest.mark.parametrize(
    ("held", "status"),
    [
        (TAG, 304),
        (f"W/{TAG}", 304),
        (f'"other", W/{TAG}, "third"', 304),
        (f'"a,b",{TAG}', 304),
        ("*", 304),
        (" * ", 304),
        ('"other"', 200),
        (TAG.strip('"'), 200),
        (f'"x{TAG[1:]}', 200),
        (f'{TAG[:-1]}x"', 200),
        ('W/"other", *', 200),
        ("", 200),
        ('"', 200),
    ],
)
def test_what_a_browser_holds_is_not_sent_again(held: str, status: int) -> None:
    """An If-None-Match that names this version, weakly or in a list, or any, is answered 304:
    without a body, its kind or its length, with all else. One that does not gets the file."""

    async def story() -> None:
        async with broker() as told:
            answer = await told.client.get(MODULE, headers={"if-none-match": held, **AS_IT_IS})
            assert answer.status_code == status
            if status == 304:
                assert answer.content == b""
                assert _headers(answer) == PUBLIC | {"etag": TAG}
            else:
                assert answer.content == FILES[MODULE].body

    asyncio.run(story())


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip, deflate, br, zstd", True),
        ("br,gzip", True),
        ("GZIP;q=0.5", True),
        ("gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("br, gzip ; q=0.000, deflate", False),
        ("identity", False),
        ("xgzip, gzipped", False),
        ("", False),
    ],
)
def test_it_comes_packed_to_who_takes_that(accepted: str, packed: bool) -> None:
    """With gzip where Accept-Encoding has it and not with q=0; the same bytes once unpacked, under
    an ETag of its own, which alone is answered by 304."""

    async def story() -> None:
        file = FILES[MODULE]
        async with broker() as told:
            answer = await told.client.get(MODULE, headers={"accept-encoding": accepted})
            assert answer.content == file.body
            assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
            form, other = (file.gzip, file.plain) if packed else (file.plain, file.gzip)
            assert answer.headers["etag"] == form.etag.decode()
            assert int(answer.headers["content-length"]) == len(form.whole.body)
            for held, status in ((form, 304), (other, 200)):
                fields = {"accept-encoding": accepted, "if-none-match": held.etag.decode()}
                again = await told.client.get(MODULE, headers=fields)
                assert (again.status_code, again.headers["etag"]) == (status, form.etag.decode())

    asyncio.run(story())


@with_broker
async def test_long_fields_are_not_looked_into(told: Broker) -> None:
    """What stands behind the first kilobyte of a field costs nothing: the file is sent as it is."""
    long = '"a",' * 15000
    fields = {"if-none-match": long + TAG, "accept-encoding": "br, " * 6000 + "gzip"}
    answer = await told.client.get(MODULE, headers=fields)
    assert (answer.status_code, answer.headers.get("content-encoding")) == (200, None)


@with_broker
async def test_a_list_of_tags_may_come_in_several_lines(told: Broker) -> None:
    """If-None-Match is a list, so two fields of it are one."""
    lines = [("if-none-match", '"other"'), ("if-none-match", TAG)]
    lines.append(("accept-encoding", "identity"))
    assert (await told.client.get(MODULE, headers=lines)).status_code == 304


@given(st.binary(max_size=200))
def test_no_tags_are_a_defect(held: bytes) -> None:
    """Any bytes are an answer, and what does not hold the tag does not name it."""
    if TAG.encode() not in held and held.strip() != b"*":
        assert not names(held, TAG.encode())


def test_answers_are_ready_before_they_are_asked_for() -> None:
    """A request makes nothing: every one gets the same two replies."""

    async def ask(**fields: bytes) -> Any:
        told = {name.replace("_", "-").encode(): value for name, value in fields.items()}
        return await FILES[MODULE].answer({"fields": told}, None, None)  # type: ignore[arg-type]

    async def story() -> None:
        whole, same = await ask(), await ask(if_none_match=TAG.encode())
        assert whole is await ask(if_none_match=b'"x"')
        assert same is await ask(if_none_match=b"*")
        assert (whole.status, same.status) == (200, 304)

    asyncio.run(story())


def test_a_changed_file_has_another_tag_and_hash() -> None:
    """ETag and integrity are made of the bytes: equal for equal ones, else different; the
    integrity is what browsers compute (Subresource Integrity, SHA-384)."""
    one, same, other = Static(b"a", ".js"), Static(b"a", ".css"), Static(b"b", ".js")
    assert one.plain.etag == same.plain.etag != other.plain.etag
    digest = base64.b64encode(hashlib.sha384(b"a").digest()).decode()
    assert one.integrity == same.integrity == f"sha384-{digest}" != other.integrity


PAGES: list[dict[str, str]] = [
    {},
    {"origin": ORIGIN},
    {"origin": "https://evil.example", "cookie": "shop=1", "sec-fetch-site": "cross-site"},
    {"origin": "null", "sec-fetch-mode": "cors", "sec-fetch-site": "cross-site"},
    {"sec-fetch-mode": "navigate", "sec-fetch-site": "none"},
]


@pytest.mark.parametrize("headers", PAGES, ids=str)
@pytest.mark.parametrize("path", [MODULE, TYPES])
def test_any_page_may_load_them(path: str, headers: dict[str, str]) -> None:
    """Module and types are for every page, a frame without an origin included: `*`, the
    same for all of them, and never with credentials."""

    async def story() -> None:
        async with broker() as told:
            answer = await told.client.get(path, headers=headers)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers
            assert "set-cookie" not in answer.headers
            assert answer.headers["vary"] == "accept-encoding"  # and not by origin

    asyncio.run(story())


@with_broker
async def test_any_origin_is_for_nothing_else(told: Broker) -> None:
    """No other answer has `*`: no session, no refusal, no document, no error of these paths."""
    minted = await told.mint(origin=ORIGIN)
    for answer in [
        minted,
        await told.rotate(minted.json()["handle"], origin=ORIGIN),
        await told.end(minted.json()["handle"]),
        await told.mint(origin="null"),
        await told.mint(token=""),
        await told.client.get("/v1/openapi.json", headers={"origin": ORIGIN}),
        await told.client.get("/v1/nothing", headers={"origin": ORIGIN}),
        await told.client.post(MODULE),
        await told.client.options(MODULE, headers={"origin": ORIGIN}),
        await told.ops.get("/metrics"),
    ]:
        assert answer.headers.get("access-control-allow-origin") in (None, ORIGIN)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X"])
@pytest.mark.parametrize("path", [MODULE, TYPES])
def test_they_are_only_read(path: str, method: str) -> None:
    """What is neither GET nor HEAD is 405, and told so."""

    async def story() -> None:
        async with broker() as told:
            answer = await told.client.request(method, path)
            assert (answer.status_code, problem(answer)) == (405, "method-not-allowed")
            assert answer.headers["allow"] == "GET, HEAD"

    asyncio.run(story())


async def _status(told: Broker, path: str) -> int:
    """As a server hands it over: the path decoded, and nothing tidied up."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "headers": [], "root_path": "",
        "query_string": b"", "client": ("192.0.2.1", 1), "scheme": "http", "server": ("x", 80),
    }  # fmt: skip
    await told.app.public(scope, None, send)  # type: ignore[arg-type]
    status: int = sent[0]["status"]
    return status


@with_broker
async def test_a_path_is_one_of_those_or_none(told: Broker) -> None:
    """Nothing in a path is taken apart or joined: what is not one of the paths, whole, is 404."""
    assert [await _status(told, path) for path in (MODULE, TYPES)] == [200] * 2
    for path in [
        "/v1/client.js/", "/v1/client.js\n", "/v1/client.js\0", "/v1/client.js?", "/V1/client.js",
        "//v1/client.js", "/v1//client.js", "/v1/./client.js", "/v1/x/../client.js",
        "/v1/../api.py", "/v1/client/client.js", "/v1/client", "/v1/package.json", "/client.js",
        "/v1/../../pyproject.toml", "/etc/passwd", "/demo/../__init__.py", "",
        "v1/client.js",
    ]:  # fmt: skip
        assert await _status(told, path) == 404, path


@with_broker
async def test_they_are_counted_and_told_of(told: Broker) -> None:
    """Module and types leave an audit line and are counted, as operation `client`."""
    await told.client.get(MODULE)
    await told.client.get(TYPES, headers={"if-none-match": "*"})
    told_of = [(line["operation"], line["status"], line["outcome"]) for line in told.audit]
    assert told_of == [("client", 200, "ok"), ("client", 304, "ok")]
    labels = {"profile": "", "outcome": "ok", "problem": ""}
    assert told.sample("broker_requests_total", operation="client", **labels) == 2.0


@with_broker
async def test_a_reload_keeps_them(told: Broker) -> None:
    """Another configuration serves the same files, which are not read again."""
    before = dict(told.app._ground.client)
    other = parse(CONFIG.replace("min_remaining: 5m", "min_remaining: 4m").encode(), Path())
    told.app.adopt(other, told.app.read(other))
    assert (await told.client.get(MODULE, headers=AS_IT_IS)).headers["etag"] == TAG
    assert {path: told.app._ground.client[path] for path in before} == before


@with_broker
async def test_a_broker_in_earnest_has_no_pages(told: Broker) -> None:
    """What the demo serves is not there otherwise."""
    for path in ("/", "/3ds", "/demo.json", "/demo/report.js", "/demo/style.css", "/index.html"):
        answer = await told.client.get(path)
        assert (answer.status_code, problem(answer)) == (404, "not-found")


@pytest.mark.parametrize("reuse", ["per_caller", "shared", "single_use"])
def test_an_answer_says_whether_the_token_may_be_used_again(reuse: str, tmp_path: Path) -> None:
    """`reuse` is the preset's word, at a mint and at each rotation."""
    preset = (ROOT / "broker/presets/nmi.yaml").read_text()
    assert preset.count("reuse: per_caller") == 1
    (tmp_path / "own.yaml").write_text(preset.replace("reuse: per_caller", f"reuse: {reuse}"))
    config = CONFIG.replace("preset: nmi", "preset: ./own.yaml")
    rotation = "    rotation: {max_chain: 8h, grace: 60s}\n"
    if reuse == "single_use":
        config = config.replace(rotation, "")

    async def story() -> None:
        async with broker(config, base=tmp_path) as told:
            minted = (await told.mint()).json()
            assert minted["reuse"] == reuse
            if reuse != "single_use":
                for _ in range(2):  # the second is the same successor
                    rotated = await told.rotate(minted["handle"])
                    assert rotated.json()["reuse"] == reuse

    asyncio.run(story())


SANDBOX = "http://127.0.0.1:8090"
POLICY = {
    "default-src": "'none'",
    "script-src": f"'self' {SANDBOX}",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": f"'self' {SANDBOX}",
    "frame-src": f"'self' {SANDBOX}",
    "form-action": f"'self' {SANDBOX}",
    "base-uri": "'none'",
    "frame-ancestors": "'self'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


def _ask(file: Static) -> Any:
    return asyncio.run(file.answer({"fields": {}}, None, None))  # type: ignore[arg-type]


def test_every_file_of_the_folder_is_a_page_or_its_part(tmp_path: Path) -> None:
    """The demo serves what lies in the folder, by its suffix, under /demo; pages also by their name
    and the first as `/`. What has another suffix, or lies deeper, it does not serve."""
    kinds = {
        "index.html": "text/html; charset=utf-8",
        "3ds.html": "text/html; charset=utf-8",
        "report.js": "text/javascript; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "icon.svg": "image/svg+xml",
    }
    for name in (*kinds, "notes.txt", "x.py", ".hidden", "key.pem"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deep.html").mkdir()
    pages = demo_pages(SANDBOX, tmp_path)
    assert set(pages) == {"/", "/3ds", "/demo.json", *(f"/demo/{name}" for name in kinds)}
    assert (pages["/"].body, pages["/3ds"].body) == (b"index.html", b"3ds.html")
    for name, kind in kinds.items():
        headers = dict(_ask(pages[f"/demo/{name}"]).headers)
        assert headers[b"content-type"].decode() == kind
    assert json.loads(pages["/demo.json"].body) == {"sandbox": SANDBOX}


def test_every_page_is_bound_by_a_strict_policy() -> None:
    """Nothing inline, no eval, Trusted Types, this origin and the sandbox's only; no referrer, and
    no copy is used without asking."""
    for path, page in demo_pages(SANDBOX).items():
        headers = {name.decode(): value.decode() for name, value in _ask(page).headers}
        rules = [rule.strip() for rule in headers["content-security-policy"].split(";")]
        assert dict(rule.split(" ", 1) for rule in rules) == POLICY, path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        assert "access-control-allow-origin" not in headers


def test_what_pages_load_is_there() -> None:
    """Each script, style, picture and page that the demo's files name by a path is served, from
    wherever the file that names it is."""
    pages = demo_pages(SANDBOX)
    served = {*pages, *document()["paths"]}
    assert {"/", "/3ds", "/demo/style.css"} <= served
    named = re.compile(r'(?:src|href|from|import)[=\s(]*"([./][^"?#]*)', re.IGNORECASE)
    for path, page in pages.items():
        for name in named.findall(page.body.decode()):
            assert urljoin(path, name) in served, f"{path} names {name}"


def test_the_demo_has_sessions_of_a_minute() -> None:
    """Beside `transactions` stands the same on an account of its own, whose rotations one can sit
    and watch."""
    profiles = parse(demo_config(8080, 9090, SANDBOX), Path()).profiles
    one, other = profiles["transactions"], profiles["transactions-minute"]
    assert other.base_url == f"{SANDBOX}/nmi-minute/api/v1"
    assert one.account != other.account
    assert (one.callers, one.origins, one.require) == (other.callers, other.origins, other.require)
    assert other.rotation is not None
    assert other.rotation.grace.total_seconds() == 30
    assert other.min_remaining is None


@pytest.fixture(name="demo", scope="module")
def _demo() -> Iterator[Process]:
    ports = ("--port", "0", "--ops-port", "0", "--sandbox-port", "0")
    with process("demo", *ports, "--ready-fd", "1") as told:
        told.line_with("Ctrl-C ends it all.")
        yield told
        assert told.end(signal.SIGINT) == 0


def test_head_and_304_end_where_they_end(demo: Process) -> None:
    """On one connection: a HEAD has the length of the file and no body, a 304 neither, and what
    comes after them is read as it was meant."""
    public, _ = demo.ready()
    line = http.client.HTTPConnection(urlsplit(public).netloc, timeout=10)
    for path, file in FILES.items():
        tag = file.plain.etag.decode()
        for method, held, status, length in [
            ("HEAD", "", 200, str(len(file.body))),
            ("GET", "", 200, str(len(file.body))),
            ("GET", tag, 304, None),
            ("HEAD", tag, 304, None),
            ("GET", "", 200, str(len(file.body))),
        ]:
            line.request(method, path, headers={"If-None-Match": held} if held else {})
            answer = line.getresponse()
            body = answer.read()
            assert (answer.status, answer.getheader("content-length")) == (status, length)
            assert body == (file.body if (method, status) == ("GET", 200) else b"")
            assert answer.getheader("transfer-encoding") is None
            assert answer.getheader("connection") is None
    line.close()


def test_the_demo_names_its_page_first_and_serves_it(demo: Process) -> None:
    """The address of the page is the first that a person is told; it opens, as do the 3-D Secure
    page and what tells pages where the sandbox is. Counted as pages."""
    public, _ = demo.ready()
    told = [word for line in demo.lines for word in line.split() if word.startswith("http")]
    assert told[0] == f"{public}/"
    for path in ("/", "/3ds"):
        answer = httpx2.get(public + path, headers={"sec-fetch-mode": "navigate"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    sandbox = httpx2.get(f"{public}/demo.json").json()["sandbox"]
    assert f"connect-src 'self' {sandbox};" in answer.headers["content-security-policy"]
    assert httpx2.get(f"{sandbox}/_sandbox/calls").status_code == 200
    assert '"operation":"page"' in demo.line_with('"operation":"page"')


def test_a_session_of_a_minute_is_minted_and_rotated(demo: Process) -> None:
    """The profile of the page that shows rotations mints at the sandbox, is to be rotated within
    the minute, and rotates."""
    public, _ = demo.ready()
    sandbox = httpx2.get(f"{public}/demo.json").json()["sandbox"]
    ada = httpx2.get(f"{sandbox}/idp/token?user=ada&format=text").text
    page = {"authorization": f"Bearer {ada}", "origin": public}
    path = f"{public}/v1/profiles/transactions-minute/sessions"
    minted = httpx2.post(path, headers=page).json()
    assert 55 <= minted["expires_in"] <= 60
    assert 30 <= minted["rotate_in"] <= 50
    handle = {"handle": minted["handle"]}
    rotated = httpx2.post(f"{public}/v1/sessions/rotate", headers=page, json=handle)
    assert rotated.status_code == 201
    assert rotated.json()["session_token"] != minted["session_token"]


def test_the_command_tells_of_the_module() -> None:
    """`client` says where the module is, its size as it is and packed, and the element that loads
    this version of it and no other, from the broker that is named."""
    done = CliRunner().invoke(main, ["client", "--broker", 'https://b.example/"><x>/'])
    assert done.exit_code == 0
    place, sizes, integrity, element = done.stdout.splitlines()
    body = Path(place).read_bytes()
    assert body == FILES[MODULE].body
    packed = int(re.fullmatch(rf"{len(body)} bytes, (\d+) with gzip", sizes)[1])  # type: ignore[index]
    assert packed == len(gzip.compress(body))
    assert integrity == FILES[MODULE].integrity
    source = "https://b.example/&quot;&gt;&lt;x&gt;/v1/client.js"
    assert element == (
        f'<script type="module" crossorigin="anonymous" src="{source}" '
        f'integrity="{integrity}"></script>'
    )


def test_a_wheel_has_all_that_is_served(tmp_path: Path) -> None:
    """What is installed from a wheel serves all of it: module, pages, and what the sandbox embeds."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("broker/client", "broker/demo/pages", "broker/sandbox/embed"):
        files = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
        assert files
        assert files <= names
