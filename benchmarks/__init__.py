"""What the broker costs: against a bare Starlette answer, and a broker of the kind people write.

`make bench` starts everything on loopback, each server in its own process, and measures all
variants in turns in one run: a shared machine is never the same twice, so only ratios taken within
minutes of each other mean anything. The figure is CPU time of the server's process per request, as
the kernel counts it; sandbox and load generator are processes of their own and do not count.

`make overload` asks more of two replicas than they can do (see `overload`).

Nothing here is imported by the broker, and nothing here may reach beyond loopback.
"""
