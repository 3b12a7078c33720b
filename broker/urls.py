"""Addresses: what is an absolute URL, which are this machine's own, and which would be a leak.

Decided from the text alone, without asking a name server.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints


def _url(value: str) -> str:
    if not is_url(value):
        raise ValueError("an absolute http(s) URL is wanted")
    if "@" in urlsplit(value).netloc or "#" in value:
        raise ValueError("a URL has no user, password or fragment here")
    if "${" in value:
        raise ValueError("this URL has no holes: where a secret goes is not for a request to say")
    return value


def is_url(text: str) -> bool:
    """Is this an absolute http(s) URL?"""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)


def server_of(url: str) -> str:
    """Scheme, host and port of an absolute URL, in one spelling of several: who gets what is sent
    there, whatever the path."""
    parts = urlsplit(url)
    port = "" if parts.port in (None, 80 if parts.scheme == "http" else 443) else f":{parts.port}"
    host = (parts.hostname or "").rstrip(".")
    return f"{parts.scheme}://{host}{port}"


def is_loopback(host: str) -> bool:
    """Is this host name the machine itself, without asking a name server?"""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plain_http(url: str, exempt: list[str]) -> bool:
    """Would this URL send what is secret unencrypted over a network?"""
    if not is_url(url):
        return False
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "http" and not is_loopback(host) and host not in exempt


Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[!-~]+$"), AfterValidator(_url)]
