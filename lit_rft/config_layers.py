"""Layers of configuration: files that build on others (`base`), and overlays for every stage (`every_stage`).

Both keys are resolved here, before the configuration is parsed: a file is merged over its base into one configuration,
so that a base may leave open which class its arguments are of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rft import callbacks
from lit_rft.error_messages import UsageError

BASE, EVERY_STAGE = "base", "every_stage"
Layer = tuple[Path | None, dict[str, Any]]  # a file (None for text) and what is written in it
_RUN = re.compile(r"^(runs/.+?)(/(?:checkpoints|episodes|adapter)(?:/.*)?)$")  # a file of another run


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings: mappings key by key, any other value of `over` replaces that of `under`.

    `KEY+` appends to a list: the entries of another list, or one.
    Where both name a class and the classes differ, no argument of the lower one is kept.
    """
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if key.endswith("+"):
            target = key[:-1] if isinstance(result.get(key[:-1]), list) else key
            added = value if isinstance(value, list) else [] if value is None else [value]
            result[target] = [*(result.get(target) or []), *added]
        elif isinstance(value, Mapping) and isinstance(below, Mapping) and not _of_another_class(below, value):
            result[key] = merge(below, value)
        else:
            result[key] = value
            result.pop(f"{key}+", None)
    return result


def _of_another_class(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "class_path" in value and not same_class(value["class_path"], below.get("class_path", value["class_path"]))


def same_class(first: Any, second: Any) -> bool:
    """Return whether two names may be of one class: equal, or a short name, or both from this library.

    `MixedPolicyGRPO`, `lit_rft.MixedPolicyGRPO` and `lit_rft.stages.MixedPolicyGRPO` are one. By the names alone: to
    import the classes would take seconds.
    """
    if first == second or not (isinstance(first, str) and isinstance(second, str)):
        return bool(first == second)
    packages = [name.rpartition(".")[0] for name in (first, second)]
    alike = "" in packages or all(package.split(".")[0] == "lit_rft" for package in packages)
    return alike and first.rpartition(".")[2] == second.rpartition(".")[2]


def keep_callback_settings(content: dict[str, Any], earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a configuration whose entries of our callbacks contain the settings of the earlier entries of the class.

    The parser adds the default of every setting, so that it can no longer be seen which ones an entry changes.

    Args:
        content: of a file, with its base.
        earlier: name of a class -> its entry so far; updated.
    """
    if not isinstance(content.get("trainer"), Mapping):
        return content
    trainer = dict(content["trainer"])
    if "callbacks" in trainer:  # replaces those of the files before
        earlier.clear()
    for key in ("callbacks", "callbacks+"):
        entries = trainer.get(key)
        if isinstance(entries, list):
            trainer[key] = [_with_earlier(entry, earlier) for entry in entries]
        elif entries is not None:
            trainer[key] = _with_earlier(entries, earlier)
    return {**content, "trainer": trainer}


def _with_earlier(entry: Any, earlier: dict[str, dict[str, Any]]) -> Any:
    written = {"class_path": entry} if isinstance(entry, str) else entry
    if not isinstance(written, Mapping) or not isinstance(path := written.get("class_path"), str):
        return entry
    package, _, name = path.rpartition(".")
    if package.split(".")[0] not in ("", "lit_rft") or name not in callbacks.__all__:
        return entry  # of other libraries there may be several
    below = earlier.get(name)
    if below is not None:
        entry = merge(below, {key: value for key, value in written.items() if value is not None})
    earlier[name] = dict(written) if below is None else entry
    return entry


def layers_of(
    content: dict[str, Any], path: Path | None, shipped: Path, load: Any, seen: tuple[Path, ...] = ()
) -> list[Layer]:
    """Return the settings of a configuration after those of its base, that one's base first, and so on.

    Args:
        content: of a file.
        path: the file; None for a configuration given as text.
        shipped: folder of the shipped configurations; a base beside the file comes first.
        load: reads a file.

    Raises:
        UsageError: For a base that is missing, or that builds on itself.
    """
    name = content.get(BASE)
    settings = {key: value for key, value in content.items() if key not in (BASE, EVERY_STAGE)}
    if name is None:
        return [(path, settings)]
    if not isinstance(name, str):
        raise UsageError(f"{path or '-c'}: base: expected the name of one config, got {name!r}")
    places = [folder / name for folder in (*([path.parent] if path else []), shipped)]
    base = next((place.resolve() for place in places if place.is_file()), None)
    if base is None:
        raise UsageError(f"{path or '-c'}: base: no {name!r} beside the file or among the shipped configs")
    if base in seen:
        raise UsageError(f"{path}: base: {name} builds on itself: {' -> '.join(file.name for file in (*seen, base))}")
    return [*layers_of(load(base), base, shipped, load, (*seen, base)), (path, settings)]


def follow_overlays(value: Any, suffix: str) -> Any:
    """Let a recipe that starts from another run's files start from the run with the same overlays.

    Args:
        value: of a configuration, or a part of it.
        suffix: of the run's folder by overlays that hold for every stage, such as `-debug`.
    """
    if isinstance(value, Mapping):
        return {key: follow_overlays(part, suffix) for key, part in value.items()}
    if isinstance(value, list):
        return [follow_overlays(part, suffix) for part in value]
    return _RUN.sub(rf"\g<1>{suffix}\g<2>", value) if isinstance(value, str) else value
