"""Which version of a credential's secrets to show an upstream, and what came of it.

Exists so that a key is replaced without an hour at which everybody must agree: the new one and the
old are both at hand, the upstream's own answers say which it knows, and a metric says when nobody
shows the old one any more. Remembers outcomes, and of each secret one earlier value;
never a token or an answer. Must never keep the new
version waiting because the old one works, nor try a refused one with every call.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from broker.keyring import Keyring
from broker.kinds import SecretRef
from broker.metrics import Metrics
from broker.model import Secret
from broker.schedule import Clock

COOL_DOWN = 60.0
"""Seconds between two tries of the newest version where an older one works: a rollover that the
upstream does not know of yet costs one refused call in them, and is over within about as many."""
_MOST = 8
"""Versions tried for one call: each costs one, and upstreams lock accounts after a dozen."""

_log = structlog.get_logger("rollover")


@dataclass(frozen=True, slots=True)
class Shown:
    """One way to be this client. slot: newest, older (further down the list) or previous (what a
    file said before its last change). sources: where the values are from."""

    values: Mapping[str, Secret]
    slot: str
    sources: tuple[str, ...]

    @property
    def key(self) -> tuple[Secret, ...]:
        """What it is by its values alone."""
        return tuple(self.values.values())


class Rollover:
    """The versions of one credential, and what is known of each."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[SecretRef]],
        keyring: Keyring,
        clock: Clock,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
        *,
        same: Sequence[str] = (),
    ) -> None:
        """groups: by name, newest first, what is shown together; the n-th of each belongs to the
        n-th of the others, and a shorter list's last to all that are left. same: of which earlier
        values are not shown, as they say who we are."""
        most = max(len(refs) for refs in groups.values())
        self._positions = [
            {name: refs[min(index, len(refs) - 1)] for name, refs in groups.items()}
            for index in range(most)
        ]
        self._keyring = keyring
        self._clock = clock
        self._metrics = metrics
        self._draw = draw
        self._known: dict[SecretRef, tuple[Secret, ...]] = {}
        self.refs = {ref for name, refs in groups.items() if name not in same for ref in refs}
        """Of which an earlier value is kept."""
        self._frozen = False
        self._same = same
        self._refused: set[tuple[Secret, ...]] = set()
        self._working: tuple[Secret, ...] | None = None
        self._try_at = math.inf
        self._candidates: tuple[Shown, ...] = ()
        self._order: tuple[Shown, ...] = ()
        self._read()

    def order(self) -> Sequence[Shown]:
        """In which order to try them now. Whoever takes the newest where an older one works takes
        the one try there is until it cools down: of a thousand calls, one."""
        self._follow()
        if self._clock.monotonic() < self._try_at:
            return self._order
        self._cool_down()
        newest = self._candidates[0]
        return (newest, *(shown for shown in self._order if shown is not newest))

    def current(self) -> Sequence[Shown]:
        """What the references say now, newest first: the same for whoever reads them."""
        self._follow()
        return [shown for shown in self._candidates if shown.slot != "previous"]

    def worked(self, shown: Shown) -> None:
        """The upstream knew it."""
        at = self._clock.now().timestamp()
        for source in shown.sources:
            self._metrics.secret_worked(source, shown.slot, at)
        if shown.key == self._working:
            return
        self._refused.discard(shown.key)
        # The answer to a call from before the newer one took over says nothing against that one.
        if self._rank(shown.key) < self._rank(self._working):
            self._working = shown.key
        self._arrange()

    def refused(self, shown: Shown) -> None:
        """The upstream does not know it: not yet, or no more."""
        for source in shown.sources:
            self._metrics.secret_refused(source, shown.slot)
        if shown.key == self._working:
            self._working = None
        if shown.key not in self._refused:
            self._refused.add(shown.key)
            _log.warning(
                "secret_refused",
                sources=shown.sources,
                slot=shown.slot,
                fingerprints={name: one.fingerprint for name, one in shown.values.items()},
            )
        self._arrange()

    async def reread(self) -> bool:
        """Looks at once whether a secret was replaced: is there a version that was not there?"""
        known = {shown.key for shown in self._candidates}
        _ = await self._keyring.reread()
        self._follow()
        return any(shown.key not in known for shown in self._candidates)

    def _follow(self) -> None:
        if self._generation != self._keyring.generation and not self._frozen:
            self._read()

    def _read(self) -> None:
        self._generation = self._keyring.generation
        known = {shown.key for shown in self._candidates}
        found: dict[tuple[Secret, ...], Shown] = {}
        for shown in self._versions():
            found.setdefault(shown.key, shown)
        self._candidates = tuple(found.values())[:_MOST]
        keys = {shown.key for shown in self._candidates}
        self._refused &= keys
        if self._working not in keys:
            self._working = None
        if not keys <= known:
            self._try_at = -math.inf
        self._arrange()

    def _versions(self) -> Iterator[Shown]:
        """What the references say now, newest first, then what they said before. Where several
        changed, nothing says which earlier values belonged together: all earlier ones do likeliest.
        """
        earlier: list[Shown] = []
        for index, position in enumerate(self._positions):
            held = (
                self._of(ref)[: 1 if name in self._same else None] for name, ref in position.items()
            )
            now, *mixed = itertools.product(*held)
            earlier += [
                _shown(position, values, "previous") for values in [*mixed[-1:], *mixed[:-1]]
            ]
            yield _shown(position, now, "older" if index else "newest")
        yield from earlier

    def _of(self, ref: SecretRef) -> tuple[Secret, ...]:
        """What it says now, and what it said here before that: of two earlier values, the one that
        works, or was not refused, so that rubbish upon rubbish costs nothing."""
        now, held = self._keyring.get(ref), self._known.get(ref, ())
        if not held:
            self._known[ref] = (now,)
        elif now != held[0]:
            working = self._working or ()
            refused = any(held[0] in key for key in self._refused)
            older = held[0] not in working and (held[-1] in working or refused)
            self._known[ref] = (now, held[-1] if older else held[0])
        return self._known[ref]

    def freeze(self) -> None:
        """No secret is read from now on: a newer configuration may mean another address by them.
        Calls that are under way go on with what they began with."""
        self._frozen = True

    def _rank(self, key: tuple[Secret, ...] | None) -> float:
        keys = [shown.key for shown in self._candidates]
        return keys.index(key) if key in keys else math.inf

    def _arrange(self) -> None:
        """The order while nothing is tried: what works, then what was not refused, then the rest;
        within each, newest first."""

        def place(shown: Shown) -> int:
            return 0 if shown.key == self._working else 1 + (shown.key in self._refused)

        self._order = tuple(sorted(self._candidates, key=place))
        if self._order[0] is self._candidates[0]:
            self._try_at = math.inf
        elif math.isinf(self._try_at) and self._try_at > 0:
            self._cool_down()

    def _cool_down(self) -> None:
        self._try_at = self._clock.monotonic() + COOL_DOWN * (1 + self._draw() / 10)


def _shown(position: Mapping[str, SecretRef], values: tuple[Secret, ...], slot: str) -> Shown:
    sources = tuple(dict.fromkeys(ref.source for ref in position.values()))
    return Shown(dict(zip(position, values, strict=True)), slot, sources)
