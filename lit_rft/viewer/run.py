"""A run as the viewer shows it: curves, rollouts, settings and environment, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from lit_rft.records import GroupRecord, read_rollouts
from lit_rft.viewer.curves import Curve, read_curves

ENVIRONMENT = "environment.json"


@dataclass
class RunData:
    """A run.

    Attributes:
        name: distinguishes it from the others in a page.
        folder: its folder.
        config: its configuration file; empty without.
        environment: versions and machine; empty without.
        curves: its scalars.
        groups: its rollouts.
    """

    name: str
    folder: str
    config: str
    environment: dict[str, Any]
    curves: dict[str, Curve]
    groups: list[GroupRecord]


def read_run(folder: Path, name: str = "") -> RunData:
    """Read a run, finished or not.

    Args:
        folder: of the run.
        name: its name in the page; empty for that of the folder.

    Raises:
        FileNotFoundError: there is no such folder, or it contains neither curves, rollouts nor a configuration.
        RolloutRecordError: a file of rollouts is corrupt.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected a run, trainer.default_root_dir of `fit`")
    config, environment = folder / "config.yaml", folder / ENVIRONMENT
    run = RunData(
        name or folder.resolve().name,
        str(folder),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {},
        read_curves(folder),
        read_rollouts(folder) if any((folder / "rollouts").glob("*.jsonl")) else [],
    )
    if not (run.config or run.curves or run.groups):
        raise FileNotFoundError(f"{folder} is not a run: it has no config.yaml, no curves and no rollouts")
    return run


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its last parts, as many as it takes to tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for number in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-number:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"expected different runs, got one of them twice: {', '.join(map(str, folders))}")


def differing_settings(configs: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings that differ between configurations: key -> value in each of them; empty if absent.

    Lists of callbacks are compared by class.
    """
    flat = [_flatten("", yaml.safe_load(config) or {}) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = {key: [settings.get(key, "") for settings in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flatten(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "class_path" in item for item in value):
        items = {item["class_path"].rpartition(".")[2]: item for item in value}.items()
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(value, default=str)}
    settings: dict[str, str] = {}
    for key, item in items:
        settings |= _flatten(f"{prefix}.{key}" if prefix else str(key), item)
    return settings
