"""A browser without a screen: it reads pages as a parser sees them, and posts their forms."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx2


@dataclass
class Form:
    """One form: where it leads, what it sends by itself, and its named buttons by their labels."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: dict[str, dict[str, str]] = field(default_factory=dict)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.title = ""
        self._inside = ""
        self._button: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self._inside = tag
        if tag == "form":
            self.forms.append(Form(told.get("action", ""), told.get("method", "get").lower()))
        elif tag == "input":
            self.forms[-1].fields[told["name"]] = told.get("value", "")
        elif tag == "button":
            self._button = {told["name"]: told.get("value", "")} if "name" in told else {}

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside == "button":
            self.forms[-1].buttons[data.strip()] = self._button


@dataclass
class Sight:
    """What a browser has before it. location: where it was sent on to, which it did not follow."""

    url: str
    status: int
    title: str
    forms: list[Form]
    location: str | None

    @property
    def form(self) -> Form:
        (only,) = self.forms
        return only


class Browser:
    """Follows nobody by itself, and remembers every byte that it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.client = httpx2.Client(
            trust_env=False, timeout=20, event_hooks={"response": [self._hear]}
        )

    def _hear(self, answer: httpx2.Response) -> None:
        answer.read()
        fields = [f"{name}: {value}" for name, value in answer.headers.multi_items()]
        self.heard.append("\n".join([*fields, answer.text]))

    def get(self, url: str) -> Sight:
        return _sight(self.client.get(url))

    def post(self, url: str, fields: dict[str, str]) -> Sight:
        return _sight(self.client.post(url, data=fields))

    def submit(self, sight: Sight, label: str = "Continue") -> Sight:
        """Presses a button of the only form there is."""
        form = sight.form
        assert form.method == "post"
        url = urljoin(sight.url, form.action) if form.action else sight.url
        return self.post(url, {**form.fields, **form.buttons[label]})


def _sight(answer: httpx2.Response) -> Sight:
    reader = _Reader()
    reader.feed(answer.text)
    reader.close()
    return Sight(
        str(answer.url),
        answer.status_code,
        reader.title,
        reader.forms,
        answer.headers.get("location"),
    )


def packed(value: Any) -> str:
    """JSON as EMV 3-D Secure carries it in a form field: base64url without padding."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unpacked(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
