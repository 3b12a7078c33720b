"""The embedded default of `token-broker demo`: a configuration that needs nothing but this machine.

Every secret in it is the sandbox's own and worth nothing; the sealing key is made at each start.
The pages beside it are examples to copy, and nothing that a broker in earnest serves.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.static import KINDS, Static

_PAGES = Path(__file__).parent / "pages"
_POLICY = (
    "default-src 'none'; script-src 'self' {sandbox}; style-src 'self'; img-src 'self'; "
    "connect-src 'self' {sandbox}; frame-src 'self' {sandbox}; form-action 'self' {sandbox}; "
    "base-uri 'none'; frame-ancestors 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_CONFIG = """\
server:
  public: {{host: 127.0.0.1, port: {port}}}
  ops: {{host: 127.0.0.1, port: {ops_port}}}
keys: {{env: DEMO_SEAL_KEY}}
callers:
  shop-users:                     # people in a browser: JWTs of the development identity provider
    type: jwt
    issuer: {sandbox}/idp
    audience: token-broker
  reports-backend:                # a service: opaque tokens, checked by introspection
    type: introspection
    url: {sandbox}/idp/introspect
    client_id: {{env: DEMO_INTROSPECT_ID}}
    client_secret: {{env: DEMO_INTROSPECT_SECRET}}
    scope: access-tokens:read     # what only services get, never a person's token
  shop-backend:                   # the shop's own server, which reads how authentications ended
    type: introspection
    url: {sandbox}/idp/introspect
    client_id: {{env: DEMO_INTROSPECT_ID}}
    client_secret: {{env: DEMO_INTROSPECT_SECRET}}
    scope: results:read
credentials:
  checkout:
    token_url: {sandbox}/checkout/access/connect/token
    client_id: {{env: DEMO_CHECKOUT_ID}}
    client_secret: {{env: DEMO_CHECKOUT_SECRET}}
    scope: ["sessions:browser", "sessions:app", payment-sessions]
    expose_to: [reports-backend]
profiles:
  transactions:
    preset: nmi
    base_url: {sandbox}/nmi/api/v1
    api_key: {{env: DEMO_NMI_KEY}}
    gateway:
      merchant_id: ${{claims.merchant_id}}
      environment: sandbox
    allow:
      callers: [shop-users]
      origins: ["http://127.0.0.1:{port}", "http://localhost:{port}"]
      require: {{role: [owner, accountant]}}
    rotation: {{max_chain: 8h, grace: 60s}}
    min_remaining: 5m
    rate_limit: 30/minute
  transactions-minute:            # sessions of one minute, to see them rotate
    preset: nmi
    base_url: {sandbox}/nmi-minute/api/v1
    api_key: {{env: DEMO_NMI_KEY}}
    gateway:
      merchant_id: ${{claims.merchant_id}}
      environment: sandbox
    allow:
      callers: [shop-users]
      origins: ["http://127.0.0.1:{port}", "http://localhost:{port}"]
      require: {{role: [owner, accountant]}}
    rotation: {{max_chain: 8h, grace: 30s}}
    rate_limit: 60/minute
  checkout-3ds:                   # the page runs the authentication itself, by actions
    preset: checkout/3ds
    credential: checkout
    base_url: {sandbox}/checkout/api
    amount: 6540
    currency: GBP
    reference: ${{uuid4}}
    source: ${{parameters.source}}
    allow_network_tokens: true
    channel_data: ${{parameters.channel_data}}
    completion:
      type: non_hosted
      callback_url: http://127.0.0.1:{port}/v1/callbacks/checkout-3ds
      # The shop's own server, which the sandbox plays, tells the shop's page that somebody is back.
      challenge_notification_url: {sandbox}/shop/3ds-return?to=http://127.0.0.1:{port}
    webhook_key: {{env: DEMO_WEBHOOK_KEY}}
    parameters:
      source: {{like: source, required: true}}
      channel_data: {{like: channel_data}}
    allow:
      callers: [shop-users, shop-backend]
      trusted: [shop-backend]
      origins: ["http://127.0.0.1:{port}", "http://localhost:{port}"]
  checkout-3ds-hosted:            # Checkout.com's own page runs it
    preset: checkout/3ds
    credential: checkout
    base_url: {sandbox}/checkout/api
    amount: 6540
    currency: GBP
    reference: ${{uuid4}}
    source: ${{parameters.source}}
    completion:
      type: hosted
      success_url: {sandbox}/shop/success?to=http://127.0.0.1:{port}
      failure_url: {sandbox}/shop/failure?to=http://127.0.0.1:{port}
    parameters: {{source: {{like: source, required: true}}}}
    allow:
      callers: [shop-users, shop-backend]
      trusted: [shop-backend]
      origins: ["http://127.0.0.1:{port}", "http://localhost:{port}"]
  checkout-flow:                  # the embedded checkout; amount and addresses are ours to say
    preset: checkout/flow
    credential: checkout
    base_url: {sandbox}/checkout/api
    amount: 6540
    currency: GBP
    billing: {{address: {{country: GB}}}}
    success_url: {sandbox}/shop/success
    failure_url: {sandbox}/shop/failure
    ip_address: ${{request.ip}}
    allow:
      callers: [shop-users, shop-backend]
      trusted: [shop-backend]
      origins: ["http://127.0.0.1:{port}", "http://localhost:{port}"]
"""


def demo_config(port: int, ops_port: int, sandbox_url: str) -> bytes:
    """The configuration, for these ports and this sandbox."""
    return _CONFIG.format(port=port, ops_port=ops_port, sandbox=sandbox_url).encode()


def demo_secrets(
    nmi_key: str,
    checkout: tuple[str, str],
    introspection: tuple[str, str],
    webhook_key: str,
) -> dict[str, str]:
    """What the configuration's references resolve to."""
    return {
        "DEMO_SEAL_KEY": secrets.token_urlsafe(32),
        "DEMO_NMI_KEY": nmi_key,
        "DEMO_CHECKOUT_ID": checkout[0],
        "DEMO_CHECKOUT_SECRET": checkout[1],
        "DEMO_INTROSPECT_ID": introspection[0],
        "DEMO_INTROSPECT_SECRET": introspection[1],
        "DEMO_WEBHOOK_KEY": webhook_key,
    }


def demo_pages(sandbox_url: str, folder: Path = _PAGES) -> Mapping[str, Static]:
    """The pages and their files, by path; they may load from the broker and this sandbox only."""
    policy = _POLICY.format(sandbox=sandbox_url).encode()
    headers = (
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy),
        (b"referrer-policy", b"no-referrer"),
    )

    def found() -> Iterator[tuple[str, Static]]:
        told = json.dumps({"sandbox": sandbox_url}).encode()
        yield "/demo.json", Static(told, ".json", *headers)
        for file in sorted(folder.iterdir()):
            if file.suffix in KINDS and file.is_file():
                served = Static(file.read_bytes(), file.suffix, *headers)
                yield f"/demo/{file.name}", served
                if file.suffix == ".html":
                    yield "/" if file.stem == "index" else f"/{file.stem}", served

    return dict(found())
