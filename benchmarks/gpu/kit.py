"""Shared parts of the steps: arguments, time limits, and figures written as soon as they exist."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
sys.path.insert(0, str(BENCHMARKS))  # modules shared by all benchmarks

import torch  # noqa: E402
from peers import machine, versions  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Kit:
    """The run of one step.

    Args:
        step: its name, and that of its file of figures.
        size: "full", or "tiny" for a trial on any machine.
        seconds: time limit of the step.
        output: folder of the figures.
    """

    step: str
    size: str
    seconds: float
    output: Path
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def write(self) -> None:
        """Replace the step's file of figures."""
        from lit_rft._files import write_json

        self.figures["seconds"] = round(time.monotonic() - self.started, 1)
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self.output / f"{self.step}.json", self.figures)

    def measure(self, name: str, work: Callable[[], Any], at_least: float = 0.0) -> Any:
        """Run one item and write its figures; a failure or running out of memory is a result, too.

        Args:
            name: of the item.
            work: returns its figures.
            at_least: skip the item if fewer seconds are left.

        Returns:
            The item's figures, or None if it failed or was skipped.
        """
        items, started = self.figures.setdefault("items", {}), time.monotonic()
        if self.seconds_left() < at_least:
            items[name] = {"skipped": f"fewer than {at_least:g} s were left"}
            self.write()
            return None
        free_memory()
        try:
            items[name] = work()
        except torch.OutOfMemoryError as error:
            items[name] = {"failed": f"out of memory: {str(error)[:200]}"}
        except Exception as error:  # go on with the other items; the exit code reports this one
            traceback.print_exc()
            items[name] = {"failed": f"{type(error).__name__}: {error}"[:2000], "error": True}
        print(f"[{time.monotonic() - self.started:5.0f} s] {name}: {items[name]}", flush=True)
        items[name] = {**items[name], "took": round(time.monotonic() - started, 2)}
        self.write()
        return None if "failed" in items[name] else items[name]

    def finish(self) -> None:
        """Record the end of the step; exit with 1 if an item failed with an error other than running out of memory."""
        self.figures["complete"] = True
        self.write()
        failed = [name for name, item in self.figures.get("items", {}).items() if item.get("error")]
        if failed:
            raise SystemExit(f"{self.step}: failed items: {', '.join(failed)}")


def begin(step: str, description: str | None, *more: Callable[[argparse.ArgumentParser], Any]) -> tuple[Kit, Any]:
    """Read the arguments of a step.

    Args:
        step: its name.
        description: for the help text.
        more: functions that add the step's own arguments.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, default=600.0, help="start nothing new after this many")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the figures")
    for add in more:
        add(parser)
    options = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    return Kit(step, options.size, options.seconds, options.output), options


def environment() -> dict[str, Any]:
    """Describe machine, device and versions."""
    import importlib.util

    names = [name for name in ("lightning", "trl", "accelerate", "flash_attn") if importlib.util.find_spec(name)]
    facts: dict[str, Any] = {
        "machine": machine(), "versions": versions(*names), "complete": False,
        "cudnn_attention": os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1",  # preferred by PyTorch
    }  # fmt: skip
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = {
            "name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
        }  # fmt: skip
    else:
        facts["device"] = {"name": "CPU", "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return facts


def free_memory() -> None:
    """Free the memory of the previous item, and reset its peak."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def has_flash_attention() -> bool:
    import importlib.util

    return DEVICE.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
