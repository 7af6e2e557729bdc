"""The configuration files of a command: checked before they are parsed, and the run's folder named after them."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from lit_rft.cli import config_folder
from lit_rft.config_layers import EVERY_STAGE, Layer, follow_overlays, keep_callback_settings, layers_of, merge
from lit_rft.config_origin import name_file
from lit_rft.error_messages import UsageError, did_you_mean

_FOLDER = "trainer.default_root_dir"
_OF_THE_STAGE = {"model": "policy.model", "agent": "agent"}  # key of the data: its source
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


@dataclass
class ConfigFile:
    """One configuration given with `-c`.

    Args:
        path: the file; None for a configuration given as text.
        written: content of the file.
        content: the same, merged over the file's base.
        position: of the file's name in the command's arguments.
        layers: the files that it is merged from, itself last.
    """

    path: Path | None
    written: dict[str, Any]
    content: dict[str, Any]
    position: int
    layers: list[Layer]

    @property
    def shipped(self) -> bool:
        return self.path is not None and config_folder().resolve() in self.path.resolve().parents

    @property
    def folder(self) -> str | None:
        """The run's folder, if set in this file."""
        trainer = self.written.get("trainer")
        return trainer.get("default_root_dir") if isinstance(trainer, dict) else None

    @property
    def holds_for_every_stage(self) -> bool:
        """True for an overlay shared by all stages of a chain."""
        value = self.written.get(EVERY_STAGE, False)
        if not isinstance(value, bool):
            raise UsageError(f"{self.path or '-c'}: {EVERY_STAGE}: expected true or false, got {value!r}")
        return value

    def changes_the_method(self) -> bool:
        """Return whether it changes more than the trainer: devices, precision and limits do not change the method."""
        return any(self.written.get(name) for name in ("model", "data"))


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Check the configuration files of a command, make functions beside them importable, and set the run's folder.

    Raises:
        UsageError: For a file that is not a configuration, or has a key in the wrong place.
    """
    files = list(read_configs(arguments))
    for file in files:
        check_places(file)
    check_classes(files, arguments)
    check_links(files, arguments)
    add_import_folders(file.path for file in files)
    return name_run_folder(insert_layers(arguments, files), files)


def insert_layers(arguments: Sequence[str], files: Sequence[ConfigFile]) -> list[str]:
    """Replace files that build on others, or change callbacks of others, by their merged configurations."""
    earlier: dict[str, dict[str, Any]] = {}
    keep_callback_settings(_read(config_folder() / "base.yaml"), earlier)
    suffix = "".join(f"-{file.path.stem}" for file in files if file.holds_for_every_stage and file.path is not None)
    result = list(arguments)
    for file in files:
        content = keep_callback_settings(file.content, earlier)
        content = follow_overlays(content, suffix) if file.shipped and suffix else content
        if content != file.written:
            option, equals, _ = result[file.position].partition("=")
            prefix = f"{option}=" if equals and option in ("-c", "--config") else ""
            result[file.position] = prefix + json.dumps(content)
    return result


def read_configs(arguments: Sequence[str]) -> Iterator[ConfigFile]:
    """Read the configurations of `-c` and `--config`, in order.

    Raises:
        UsageError: For one that is not a YAML mapping.
    """
    for position, argument in enumerate(arguments):
        if argument in ("-c", "--config") and position + 1 < len(arguments):
            position, text = position + 1, arguments[position + 1]
        elif argument.startswith(("-c=", "--config=")):
            text = argument.split("=", 1)[1]
        else:
            continue
        path = Path(text) if not text.lstrip().startswith("{") and Path(text).is_file() else None
        written = _read(path) if path else _load(text, "-c")
        layers = layers_of(written, path, config_folder(), _read)
        content: dict[str, Any] = functools.reduce(merge, (settings for _, settings in layers))
        yield ConfigFile(path, written, content, position, layers)


def _read(path: Path) -> dict[str, Any]:
    try:
        return _load(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _load(text: str, name: object) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(name)
        raise UsageError(f"{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        written = "no key" if content is None else repr(text.strip()[:60])
        raise UsageError(f"{name}: expected keys such as trainer, model and data, got {written}")
    return content


def check_places(file: ConfigFile) -> None:
    """Check that arguments of a class are below `init_args`, not beside it.

    Raises:
        UsageError: For a misplaced key.
    """
    for path, content in (*file.layers, (file.path, file.content)):  # a class may be named in another layer
        if not isinstance(trainer := content.get("trainer") or {}, dict):
            raise UsageError(f"{path or '-c'}: trainer: expected keys such as max_epochs, got {trainer!r}")
        for name in ("model", "data"):
            _check_class(content.get(name), name, path or "-c")
        for key, value in _walk(content, ""):
            if isinstance(value, dict) and "class_path" in value:
                _check_class(value, key, path or "-c")


def check_classes(files: Sequence[ConfigFile], arguments: Sequence[str]) -> None:
    """Check that overlays follow a recipe: without one they would be parsed as arguments of a base class.

    Raises:
        UsageError: For overlays without a recipe.
    """
    classes = named_classes(files, arguments)
    for name in ("model", "data"):
        layers = [layer for file in files for layer in file.layers]
        places = [str(path or "-c") for path, settings in layers if settings.get(name)]
        places += [a.partition("=")[0] for a in arguments if a.startswith(f"--{name}.init_args")]
        if places and name not in classes:
            raise UsageError(
                f"{name}.class_path is not set, and {', '.join(places)} would change arguments of that class: set a "
                "recipe first, with -c or as the base of the file (the first lines of a shipped overlay name one)"
            )


def named_classes(files: Iterable[ConfigFile], arguments: Sequence[str]) -> dict[str, str]:
    """Return the class of the model and of the data (`model`, `data`) as a command or its configurations name it."""
    classes: dict[str, str] = {}
    for file in files:
        for name in ("model", "data"):
            part = file.content.get(name)
            path = part.get("class_path") if isinstance(part, dict) else part
            classes |= {name: path} if isinstance(path, str) else {}
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, value in itertools.pairwise(words):
        if match := re.fullmatch(r"--(model|data)(\.class_path)?", option):
            classes[match.group(1)] = value
    return classes


def check_links(files: Sequence[ConfigFile], arguments: Sequence[str]) -> None:
    """Check that the data module sets no key that it takes from the stage.

    Raises:
        UsageError: For such a key: it would have no effect.
    """
    given = [match for a in arguments if (match := re.match(r"--data\.(?:init_args\.)?(\w+)", a))]
    names = [match.group(1) for match in given]
    for file in files:
        data = file.content.get("data")
        settings = data.get("init_args") if isinstance(data, dict) else None
        # null follows the stage, as in the config written by a run
        names += [key for key, value in settings.items() if value is not None] if isinstance(settings, dict) else []
    for name in names:
        if name in _OF_THE_STAGE:
            message = (
                f"data.init_args.{name}: the data module follows model.init_args.{_OF_THE_STAGE[name]}: set that, and "
                "remove this key"
            )
            raise UsageError(name_file(message, [layer for file in files for layer in file.layers], arguments))


def _check_class(value: Any, key: str, name: object) -> None:
    if not isinstance(value, dict):
        return
    misplaced = [part for part in value if part not in _OF_A_CLASS]
    if misplaced:
        near = did_you_mean(str(misplaced[0]), _OF_A_CLASS)
        raise UsageError(
            f"{name}: {key}.{misplaced[0]}: no such key; arguments of the class belong under {key}.init_args: write "
            f"{key}.init_args.{misplaced[0]}{near}"
        )


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    yield key, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _walk(part, f"{key}.{name}".lstrip("."))


def add_import_folders(paths: Iterator[Path | None]) -> None:
    """Make functions in the working directory and beside configuration files importable.

    These folders come last, so that their files hide no library.
    """
    for folder in dict.fromkeys([Path.cwd(), *(path.resolve().parent for path in paths if path is not None)]):
        if str(folder) not in sys.path and config_folder().resolve() not in (folder, *folder.parents):
            sys.path.append(str(folder))


def name_run_folder(arguments: Sequence[str], files: Sequence[ConfigFile]) -> list[str]:
    """Set a separate folder for each combination of configurations.

    A folder set by the user is unchanged. Otherwise it is the recipe's, followed by the names of all overlays that
    change the model or the data and set none: `arithmetic.yaml` with `on_policy.yaml` runs in
    `runs/luffy/arithmetic-on_policy`.

    Returns:
        The arguments, with the folder right after the last configuration.
    """
    if not files or any(a == f"--{_FOLDER}" or a.startswith(f"--{_FOLDER}=") for a in arguments):
        return list(arguments)
    folder: str | None = None
    overlays: list[str] = []
    for file in files:
        if file.folder is not None:
            folder = file.folder
            overlays = overlays if file.shipped else []  # a folder in a user's file holds for all files before it
        elif file.path is not None and file.changes_the_method():
            overlays.append(file.path.stem)
    if not overlays:
        return list(arguments)
    name = "-".join(dict.fromkeys(overlays))
    chosen = f"runs/{name}" if folder is None else f"{folder}-{name}"
    end = files[-1].position + 1
    return [*arguments[:end], f"--{_FOLDER}", chosen, *arguments[end:]]
