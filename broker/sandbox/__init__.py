"""Stand-ins for the upstreams, so that nothing of this project needs a real account to run.

One loopback HTTP server plays NMI, the Checkout.com token endpoint and a development identity
provider, checks what it is sent as they would, and misbehaves on request.  It must never be
reachable from anywhere but the developer's machine: its keys are public knowledge and its
identity provider signs tokens for whoever asks.
"""
