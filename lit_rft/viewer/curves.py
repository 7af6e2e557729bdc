"""Scalars of a run from TensorBoard's files, and from Lightning's CSV files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_MAX_POINTS = 2000  # of a curve in a page


class Curve(NamedTuple):
    """Values of a scalar, in the order of their steps."""

    steps: list[int]
    values: list[float]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read all scalars of a run for a page: finite values in five digits, of a long curve some.

    Args:
        folder: of the run; its files are searched for in it and below.

    Returns:
        The curves, by name in alphabetical order.
    """
    scalars = read_scalars(folder)
    return {name: _thin(scalars[name]) for name in sorted(scalars)}


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read step and value of all scalars of a run.

    Of a resumed run, points of the earlier process after the first step of the later one are left out. A file without
    metrics of training is that of an evaluation, which replaces points of the same step only.

    Args:
        folder: of the run; its files are searched for in it and below.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.name):
        _add(points, _event_scalars(path))
    for path in sorted(folder.rglob("metrics.csv"), key=_natural):
        _add(points, _csv_scalars(path))
    return {name: sorted(values.items()) for name, values in points.items()}


def _add(points: dict[str, dict[int, float]], scalars: Iterable[tuple[str, int, float]]) -> None:
    """Add the points of a file; those of training replace, of each name, earlier ones from their first step on."""
    later: dict[str, dict[int, float]] = {}
    for name, step, value in scalars:
        later.setdefault(name, {})[step] = value
    training = any(name.startswith("train/") for name in later)
    for name, values in later.items():
        first = min(values) if training else math.inf
        points[name] = {step: value for step, value in points.get(name, {}).items() if step < first} | values


def _natural(path: Path) -> list[tuple[str, int]]:
    """Return a key that sorts `version_10` after `version_2`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", str(path))]


def _event_scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util import tensor_util

    for event in LegacyEventFileLoader(str(path)).Load():  # ends at an incomplete record of a killed run
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, int(event.step), float(value.simple_value)
            elif value.HasField("tensor") and value.metadata.plugin_data.plugin_name == "scalars":
                yield value.tag, int(event.step), float(tensor_util.make_ndarray(value.tensor))


def _csv_scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            step = row.pop("step", "")
            for name, text in row.items():
                if step and text:
                    try:
                        yield name, int(float(step)), float(text)
                    except ValueError:
                        continue  # a text among the metrics


def _thin(points: list[tuple[int, float]]) -> Curve:
    """Keep finite points, and of a long curve every n-th one and the last."""
    finite = [(step, float(f"{value:.5g}")) for step, value in points if math.isfinite(value)]
    stride = math.ceil(len(finite) / _MAX_POINTS) or 1
    kept = finite[::stride] + (finite[-1:] if (len(finite) - 1) % stride else [])
    return Curve([step for step, _ in kept], [value for _, value in kept])
