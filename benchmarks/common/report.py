"""What benchmarks share: timing a call, and telling figures, and ratios beside their goals."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Goal", "at_least", "at_most", "machine", "peak_gib", "tell", "timed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a ratio, from above or from below."""

    bound: float
    way: str

    def met(self, value: float) -> bool:
        return value <= self.bound if self.way == "at most" else value >= self.bound


def at_most(bound: float) -> Goal:
    return Goal(bound, "at most")


def at_least(bound: float) -> Goal:
    return Goal(bound, "at least")


def timed(act: Callable[..., T], *given: Any) -> tuple[float, T]:
    """(seconds, what was returned)."""
    began = time.perf_counter()
    result = act(*given)
    return time.perf_counter() - began, result


def peak_gib(process: int | str = "self") -> float:
    """Peak resident GiB; what `resource` tells of a process begins with the peak of the one that started it."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def machine() -> dict[str, Any]:
    """What was measured on."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors", "lancedb")},
    }


def tell(figures: Mapping[str, float], ratios: Mapping[str, float], goals: Mapping[str, Goal], to: Path | None) -> None:
    """Print all of it, and write it as JSON where that is asked for; a missed goal is only printed."""
    for name, value in figures.items():
        print(f"  {name:44} {value:14,.3f}")
    for name, value in ratios.items():
        goal = goals.get(name)
        verdict = f"{'ok  ' if goal.met(value) else 'MISS'} ({goal.way} {goal.bound})" if goal else ""
        print(f"  {name:44} {value:14,.3f}  {verdict}")
    if to:
        to.write_text(json.dumps({"figures": dict(figures), "ratios": dict(ratios)}, indent=1) + "\n", encoding="utf-8")
