"""Three panels over offered load: goodput, p99 of what was answered, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.overload.world import IS_PINNED


def plot(path: Path, found: dict[str, Any]) -> None:
    """path: its suffix says what it becomes, .png or .svg."""
    import matplotlib as mpl  # noqa: PLC0415  (slow, and only needed here)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (goodput, p99, refused) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    loads = sorted({step["load"] for step in found["steps"]})
    ideal = [min(load, 1.0) * found["reference"] for load in loads]
    goodput.plot(loads, ideal, color="0.6", linestyle=":", label="ideal")
    for (name, steps), mark in zip(_by_name(found).items(), ("o", "s"), strict=False):
        at = [step["load"] for step in steps]
        line = {"marker": mark, "label": name}
        (drawn,) = goodput.plot(at, [step["goodput"] for step in steps], **line)
        color = drawn.get_color()
        in_time = [step["good_in_time"] for step in steps]
        goodput.plot(at, in_time, color=color, linestyle="--", label=f"{name}, within 0.5 s")
        slow = [(step["answered"]["p99"] or float("nan")) * 1e3 for step in steps]
        p99.plot(at, slow, color=color, **line)
        told = [(step["refusals"]["p99"] or float("nan")) * 1e3 for step in steps]
        p99.plot(at, told, color=color, linestyle="--", marker=".", label=f"{name}, to be refused")
        refused.plot(at, [100 * step["refused_share"] for step in steps], color=color, **line)
        gave_up = [100 * step["gave_up"] / step["sent"] for step in steps]
        refused.plot(at, gave_up, color=color, linestyle="--", label=f"{name}, no answer in 10 s")
        wrong = sum(sum(step["reasons"].values()) for step in steps)
        refused.plot([], [], " ", label=f"{name}: {wrong} wrong answers")
    _dressed(goodput, "right answers a second")
    p99.set_yscale("log")
    _dressed(p99, "p99 in ms, from when it was due")
    _dressed(refused, "% of what was offered")
    where = "on one core" if IS_PINNED else "with everything else on one core"
    figure.suptitle(f"Two replicas {where}, a shared Redis; 1 x = {found['reference']:.0f}/s")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _by_name(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    named: dict[str, list[dict[str, Any]]] = {name: [] for name in found["peak"]}
    for step in sorted(found["steps"], key=lambda step: float(step["load"])):
        named[step["deployment"]].append(step)
    return named


def _dressed(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("offered load, multiples of the peak")
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
