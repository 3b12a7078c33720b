"""What every test module may ask for by name, and nothing else: fixtures that must exist once in a
run (imported into modules, each of these would have its own browser)."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.browsing import FAILED, _chromiums, _demo, browser, context, demo

__all__ = ["_chromiums", "_demo", "browser", "context", "demo"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes that a test failed, for those who clean up after it."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report
