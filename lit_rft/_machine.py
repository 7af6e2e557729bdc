"""Versions and hardware of this machine, for records of runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "lit-rft", "torch", "lightning", "transformers", "peft", "torchmetrics", "jsonargparse", "datasets", "numpy",
    "vllm", "scienceworld", "alfworld", "math-verify", "reasoning-gym",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """Return Python, operating system, processor, memory and package versions; nothing is imported."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count()},
        "memory_gb": _memory_gb(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
    }


def package_version(name: str) -> str:
    """Return the version of an installed package; empty if it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
