"""Rows about what lies between broker and upstream: TLS, names, clocks."""

from __future__ import annotations

from tests.chaos.judge import ASKED, BUSY, UPSTREAM_DOWN
from tests.chaos.kinds import CLOCK, DNS, HOSTS, TLS
from tests.chaos.proxies import Authority
from tests.chaos.stage import Row, Stage

ALL = {"every": UPSTREAM_DOWN}
BROKEN_OFF = {"every": UPSTREAM_DOWN | {"upstream-nonsense"}}
"""The same where the row cuts connections: an answer may be cut in the middle, and then is none."""
SHORT_OF_CPU = dict.fromkeys(ASKED, BUSY)
"""A machine that does much else may be too slow; a broker that says so is right, and it is counted."""


async def _tls(stage: Stage) -> None:
    """Another certificate on each new connection; those that stood are cut."""
    world = stage.world
    proxy, good = world.proxy, world.proxy.tls
    stranger = Authority(world.directory, "stranger").leaf()
    contexts = {
        "of an unknown authority": stranger,
        "of another address": world.authority.leaf("127.0.0.9"),
        "expired": world.authority.leaf(days=-3),
        "no TLS at all": None,
    }
    async with stage.under_load():
        for what, context in contexts.items():
            answered = stage.judge.outcomes["ok"]
            async with stage.fault(**BROKEN_OFF):
                before = await stage.calls("nmi.session")
                await proxy.again(context)
                asked = await stage.calls("nmi.session")
                await stage.hold(4, 1)
                passed = await stage.calls("nmi.session") - asked
                stage.must(passed == 0, f"{what}: {passed} mints went through ({before} before)")
                await proxy.again(good)
            stage.must(stage.judge.outcomes["ok"] > answered, f"{what}: nothing after it")


async def _dns(stage: Stage) -> None:
    """The upstream's name is gone, and what was connected is cut.

    A broker that was just started has never heard the name; one that runs has it for a while, so
    that in the long form it is kept away for longer than anybody remembers it.
    """
    world, broker = stage.world, stage.world.brokers[0]
    await world.stop(broker)
    world.hosts.write_text("127.0.0.1 localhost\n")  # in place: the file itself is mounted
    await world.serve()
    async with stage.load.running(stage.rate):
        async with stage.fault(recovery=20, **ALL):
            await stage.hold(5, 2)
            world.hosts.write_text(HOSTS)
        if not stage.short:
            failed = stage.judge.outcomes["upstream-unavailable"]
            async with stage.fault(recovery=20, **BROKEN_OFF):
                world.hosts.write_text("127.0.0.1 localhost\n")
                for _ in range(45):
                    world.proxy.cut()
                    await stage.hold(1)
                world.hosts.write_text(HOSTS)
            stage.must(stage.judge.outcomes["upstream-unavailable"] > failed, "it was not felt")
        await stage.calm("at the end", 10)
    stage.must(stage.judge.outcomes["upstream-unavailable"], "the fault was not felt")


async def _clock(stage: Stage) -> None:
    """The brokers' wall clock, an hour ahead and an hour behind; what they were asked for is
    looked at by a clock that is right.

    A handle says in wall time when its session ends: ahead of time it is over, and a new mint is
    needed. Nothing wrong comes of that, so it is allowed.
    """
    over = {"handle-expired"}
    allowed = SHORT_OF_CPU | {"rotate": over | BUSY}
    async with stage.under_load(), stage.fault(**allowed):
        for step in ("+3600", "-3600", "+0"):
            stage.world.stamp.write_text(step)
            # What was under way has seen both times: of that nothing is expected.
            stage.judge.epoch += 1
            await stage.hold(8, 1.5)
        # And so have the handles that are left, whose end was told an hour too early.
        await stage.load.settled()
        stage.load.forget()


async def _upstream_clock(stage: Stage) -> None:
    """The upstream's clock, the same: what it calls an hour from now is one by its own clock."""
    # A token of an hour ends when its server's clock goes on by one: refused, learnt, replaced.
    async with stage.under_load():
        with stage.judge.allowing(unknown={"access"}, **SHORT_OF_CPU):
            for step in (3600, -3600, 0):
                stage.judge.skewing()
                await stage.order("clock", {"skew_seconds": step})
                stage.judge.skewed(step)
                await stage.hold(8, 1.5)


ROWS = [
    Row("tls-failure", "certificates of an unknown authority, another address, the past; no TLS",
        "nothing is sent there, 503, calm again by itself", TLS, _tls),
    Row("dns-failure", "the upstream's name does not resolve any more",
        "503, calm again by itself", DNS, _dns),
    Row("clock-of-broker", "the brokers' wall clock: +1 h, -1 h, right again",
        "no failed request, lives told are true", CLOCK, _clock),
    Row("clock-of-upstream", "the upstream's clock: +1 h, -1 h, right again",
        "no failed request, lives told are true", CLOCK, _upstream_clock),
]  # fmt: skip
