"""The parser of configurations and arguments: errors in one line, loggers in the run's folder."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from lit_rft.error_messages import UsageError, arguments_of, debugging, did_you_mean, innermost, places_of


class ExplainingParser(LightningArgumentParser):
    """Raises `UsageError` with the allowed values, in place of a page of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # inherited by the parsers of the verbs
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self._classes: Mapping[str, str] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if debugging():
            super().error(message, ex)
        explained = explain(message, [action.dest for action in self._parser_of(message)._actions], self._classes)
        # nested parsers of classes do not know their own position
        explained = explained.removeprefix("config.")  # the text of merged files
        raise UsageError(re.sub(r"^(model|data)\.(?!init_args|class_path)", r"\1.init_args.", explained)) from ex

    def know_classes(self, classes: Mapping[str, str]) -> None:
        """Suggest keys of the command's own classes.

        Args:
            classes: `model` and `data`, as the command or its configurations name them; one may be missing.
        """
        for parser in (self, *self._verbs.values()):
            parser._classes = classes

    @property
    def _verbs(self) -> dict[str, Any]:
        return getattr(self._subcommands_action, "choices", None) or {}

    def _parser_of(self, message: str) -> Any:
        """Return the parser of the verb in a message, whose keys are those of its configurations."""
        match = re.search(r"Subcommand '(\w+)'", message)
        return self._verbs.get(match.group(1), self) if match else self

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """Validate, after setting the run's folder for loggers without one."""
        if "trainer.logger" in namespace:
            give_folder(namespace["trainer.logger"], namespace["trainer.default_root_dir"])
        super().validate(namespace, *args, **kwargs)


def give_folder(loggers: Any, folder: str | None) -> None:
    """Set the run's folder for loggers without one.

    The settings of base.yaml for TensorBoard (`name: tensorboard, version: ""`), which the parser passes on to loggers
    of other classes, are removed there.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        class_path = getattr(logger, "class_path", None)
        if class_path is None:
            continue
        defaults = inspect.signature(_imported(class_path)).parameters
        if logger.get("init_args") is None:
            logger["init_args"] = type(logger)()
        settings = logger["init_args"]
        if not class_path.endswith("TensorBoardLogger") and (settings.get("name"), settings.get("version")) == (
            "tensorboard", "",
        ):  # fmt: skip
            for name in ("name", "version"):
                settings[name] = defaults[name].default
        if "save_dir" in defaults and settings.get("save_dir") in (None, "", defaults["save_dir"].default):
            settings["save_dir"] = folder or "."


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def explain(message: str, keys: Sequence[str], classes: Mapping[str, str]) -> str:
    """Return a parser's message in one line; for an unknown key with the known ones and a suggestion."""
    if match := re.search(r"unrecognized arguments: ([^-\s]\S*\.ya?ml)", message):
        return f"{match.group(1)}: no option; a config comes after -c: write -c {match.group(1)}"
    if match := re.fullmatch(r".*arguments are required: ((?:\w+\.(?:data|model)(?:, )?)+)", message.strip()):
        missing = " and ".join(f"--{key.rpartition('.')[2]}" for key in reversed(match.group(1).split(", ")))
        return f"expected a config with stage and data (-c NAME; `lit-rft configs` lists them), got no {missing}"
    if match := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted(?![\s\S]*class_path)", message):
        owner, wrong = match.groups()
        return unknown_key(wrong, _imported(owner), innermost(message).partition(": ")[0])
    patterns = r"unrecognized arguments: --([\w.+]+)", r"accept option '([\w.]+)'", r"Option '([\w.]+)' is not accepted"
    for pattern in patterns:
        if match := re.search(pattern, message):
            group = re.search(r"Group '([\w.]+)'", message)
            return _unknown_option(f"{group.group(1)}.{match.group(1)}" if group else match.group(1), keys, classes)
    if match := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(message, match.group(1))
    reason = innermost(message)
    explanation = ": it needs all methods of the protocol, with the same arguments and annotations"
    if "does not implement protocol" in reason and explanation not in reason:
        reason += explanation
    return reason


def unknown_key(wrong: str, owner: Any, section: str = "") -> str:
    """Return the message for a key that a class or function does not accept."""
    allowed = arguments_of(owner)
    name = wrong.partition(".")[0]
    where = f" ({section})" if section and section != wrong else ""
    return f"{owner.__name__}{where}: no key {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"


def _unknown_option(wrong: str, keys: Sequence[str], classes: Mapping[str, str]) -> str:
    is_main = "trainer" in {key.partition(".")[0] for key in keys}  # otherwise the parser of a class or of settings
    section, name = wrong.rpartition(".")[0], wrong
    if not is_main and section not in {key.rpartition(".")[0] for key in keys}:  # the first part is wrong, or all
        section, name = "", wrong.partition(".")[0]
    hidden = ("help", "print_config", "print_shtab", "subcommand")
    allowed = [key for key in keys if key.rpartition(".")[0] == section and key not in hidden]
    if is_main and not section:
        allowed = list(dict.fromkeys(key.partition(".")[0] for key in keys if key not in hidden))
    near = did_you_mean(name if section or not is_main else name.partition(".")[0], allowed)
    longer = [key for key in allowed if key.startswith(f"{wrong}_")]  # --seed_everything
    if is_main and not near and (places := longer + _full_keys(wrong, classes)):
        return f"no key {wrong!r}; write --{' or --'.join(places)}"
    if not allowed:
        allowed = list(dict.fromkeys(key.partition(".")[0] for key in keys if key not in hidden))
    return f"no key {name!r}; allowed: {', '.join(allowed)}{near}"


def _full_keys(wrong: str, classes: Mapping[str, str]) -> list[str]:
    """Return the full keys that end with an incomplete key: of the command's classes, or of all if it names others."""
    places = places_of(wrong, {"trainer": L.Trainer})
    for prefix, package, kind in _PARTS:
        owners = class_names(package, kind)
        chosen = owners.get(classes.get(prefix, "").rpartition(".")[2])
        for owner in owners.values() if chosen is None else [chosen]:
            places += places_of(wrong, {f"{prefix}.init_args": owner})
    return list(dict.fromkeys(places))


_PARTS: list[tuple[str, str, type]] = [
    ("model", "lit_rft.stages", L.LightningModule),
    ("data", "lit_rft.datamodules", L.LightningDataModule),
]


def class_names(package: str, kind: type) -> dict[str, type]:
    """Return short name -> class, for the exported classes of a kind in a package."""
    module = importlib.import_module(package)
    exports = {name: getattr(module, name) for name in module.__all__}
    return {name: part for name, part in exports.items() if isinstance(part, type) and issubclass(part, kind)}


def _unknown_class(message: str, wrong: str) -> str:
    key = innermost(message).partition(": ")[0]
    for prefix, package, kind in _PARTS:
        if key == prefix:
            names = list(class_names(package, kind))
            near = did_you_mean(wrong, names)
            return f"{key}: no class {wrong!r}; allowed: {', '.join(names)}, or the import path of another{near}"
    near = did_you_mean(wrong, class_names("lit_rft.callbacks", L.Callback))
    return f"{key}: no class {wrong!r}; expected the import path of a class{near}"


def flat_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return full key -> value of a parsed configuration, for its plain values."""
    values: dict[str, Any] = {}
    parts: Mapping[str, Any] = config if isinstance(config, Mapping) else vars(config)
    for name, value in parts.items():
        key = f"{prefix}{name}"
        nested = isinstance(value, Mapping) or hasattr(value, "as_dict")
        values |= flat_values(value, f"{key}.") if nested else {key: value}
    return values
