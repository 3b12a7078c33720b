"""Which operation is to misbehave, how, and how many times more.

A fault is data: what it does is in `misbehaviour`.  Unknown kinds and options are refused, since
a misspelt fault would make the test that relies on it pass for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


class _Required:
    """Stands where an option has no default."""


_DAY: Final = 86_400
"""No test waits longer; and infinity, which JSON can carry, is no time to set a timer to."""

REQUIRED: Final = _Required()

KINDS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "latency": {"seconds": 1.0},
        "hang": {},
        "reset": {},
        "close-midway": {},
        "status": {
            "code": REQUIRED,
            "retry_after": None,
            "retry_after_as": "seconds",
            "body": None,
        },
        "html-200": {},
        "truncated-json": {},
        "huge-body": {"bytes": 50_000_000, "declare_length": False},
        "endless-body": {},
        "duplicate-keys": {},
        "missing-expiry": {},
        "past-expiry": {"seconds": 60.0},
        "expires-in": {"value": REQUIRED},
        "set-fields": {"fields": REQUIRED},
        "slow-drip": {"seconds": 0.1},
    }
)
"""Every kind with its options and their defaults."""


class FaultError(ValueError):
    """A fault that cannot be set, with a text that says why."""


@dataclass(slots=True)
class Fault:
    """One misbehaviour of one operation; `times` counts down, None goes on until cleared."""

    operation: str
    kind: str
    times: int | None
    options: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "kind": self.kind,
            "times": self.times,
            **self.options,
        }


def parse_fault(data: Mapping[str, Any], operations: frozenset[str]) -> Fault:
    rest = dict(data)
    operation, kind = rest.pop("operation", None), rest.pop("kind", None)
    times = rest.pop("times", None)
    if not isinstance(operation, str) or operation not in operations:
        raise FaultError(f"operation must be one of {', '.join(sorted(operations))}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise FaultError(f"kind must be one of {', '.join(sorted(KINDS))}")
    if times is not None and (type(times) is not int or times < 1):
        raise FaultError("times must be a positive integer or null")
    unknown = sorted(set(rest) - set(KINDS[kind]))
    if unknown:
        raise FaultError(f"{kind} does not take {', '.join(unknown)}")
    options = {**KINDS[kind], **rest}
    for name, value in options.items():
        _check_option(name, value)
    return Fault(operation, kind, times, options)


def _check_option(name: str, value: object) -> None:
    if value is REQUIRED:
        raise FaultError(f"{name} is required")
    integer = value if isinstance(value, int) and not isinstance(value, bool) else None
    number = value if isinstance(value, float) else integer
    good = {
        "seconds": number is not None and 0 <= number <= _DAY,
        "code": integer is not None and 200 <= integer <= 599,
        "retry_after": value is None or integer is not None or _is_header_value(value),
        "retry_after_as": value in ("seconds", "http-date"),
        "bytes": integer is not None and integer > 0,
        "declare_length": isinstance(value, bool),
        "fields": isinstance(value, dict),
    }
    if not good.get(name, True):
        raise FaultError(f"{name} has a value it cannot have")


def _is_header_value(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


class FaultList:
    """The faults in force, oldest first; the first that matches is the one that happens."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def take(self, operation: str) -> Fault | None:
        for fault in self._faults:
            if fault.operation == operation:
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        self._faults.clear()

    def as_list(self) -> list[dict[str, Any]]:
        return [fault.as_dict() for fault in self._faults]
