"""The report of a run, as Markdown: what was tried, what held, with the figures."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence

from tests.chaos.stage import Form, Told


def markdown(results: Sequence[Told], started: float, form: Form) -> str:
    """Without host names or paths: it is published with the project."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started))
    requests = sum(told.judge.requests for told in results)
    tokens = sum(told.judge.tokens for told in results)
    wrong = sum(told.judge.wrong_answers for told in results)
    under = sum(told.judge.under_floor for told in results)
    held = sum(told.held for told in results)
    lines = [
        "# Chaos report",
        "",
        f"{when}, {'short' if form.short else 'long'} form, {form.rate:.0f} operations a second, "
        f"{(time.time() - started) / 60:.0f} minutes. Python {platform.python_version()}, "
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release().split('-')[0]}; callers, "
        "brokers, fake upstreams and store share them.",
        "",
        f"**{held} of {len(results)} rows held. {requests} requests, {tokens} session tokens, "
        f"{wrong} wrong answers, {under} tokens under their floor.**",
        "",
        f"`{_command(sys.argv[1:])}`",
        "",
        "| row | what was done | what must hold | requests | by outcome | wrong | under floor | "
        "token requests | held | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(told) for told in results),
        "",
    ]
    for told in results:
        if told.failures:
            lines += [f"## {told.row.name} did not hold", ""]
            lines += [*(f"- {failure}" for failure in told.failures), ""]
    return "\n".join(lines)


def _command(arguments: list[str]) -> str:
    """How to run the same again; where the report was to go is nobody's business."""
    if "--report" in arguments:
        at = arguments.index("--report")
        arguments = arguments[:at] + arguments[at + 2 :]
    return " ".join(["python -m tests.chaos", *arguments])


def _line(told: Told) -> str:
    judge, row = told.judge, told.row
    outcomes = ", ".join(f"{name} {count}" for name, count in judge.outcomes.most_common())
    cells = [
        row.name, row.done, row.holds, judge.requests, outcomes, judge.wrong_answers,
        judge.under_floor, told.token_requests or "-", "yes" if told.held else told.not_here or "**no**",
        "; ".join(told.notes),
    ]  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
