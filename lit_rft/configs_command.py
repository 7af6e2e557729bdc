"""The command `lit-rft configs`: list, show and copy the shipped configurations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from lit_rft._files import replacing
from lit_rft.cli import config_folder, shipped_configs, unknown_config
from lit_rft.config_files import read_configs
from lit_rft.error_messages import OneLineParser, UsageError

_SHOWN = 90  # characters of a purpose
_BASE = re.compile(r"^(base:\s*)([^\s#]+)", re.MULTILINE)


def run_configs(arguments: Sequence[str]) -> None:
    """List, show or copy shipped configurations; list all of them without an action.

    Raises:
        UsageError: wrong arguments, an unknown name, or a file that exists already.
    """
    given = _parser().parse_args(arguments or ["list"])
    if given.action == "list":
        _list(given.word)
    elif given.action == "show":
        print(_as_written(given.name) if given.file else _merged(given.name), end="")
    else:
        _copy(given.name, Path(given.to or Path(given.name).name))


def _list(word: str) -> None:
    lines = [(name, _purpose(name)) for name in shipped_configs()]
    chosen = [(name, purpose) for name, purpose in lines if word.lower() in f"{name} {purpose}".lower()]
    if not chosen:
        raise UsageError(f"lit-rft configs list: no config has {word!r} in its name or first line")
    width = max(len(name) for name, _ in chosen)
    for name, purpose in chosen:
        print(f"{name:<{width}}  {purpose}")


def _purpose(name: str) -> str:
    """Return the first sentence of a config's comment."""
    comment = re.match(r"(?:# ?[^\n]*\n)+", _as_written(name))
    text = " ".join(line.lstrip("# ") for line in comment.group().splitlines()) if comment else ""
    sentence = re.split(r"(?<=[.;])(?<!Dr\.) ", text)[0].rstrip(".:;")
    return sentence if len(sentence) <= _SHOWN else f"{sentence[:_SHOWN].rpartition(' ')[0]} ..."


def _as_written(name: str) -> str:
    path = config_folder() / name
    if name not in shipped_configs():
        raise UsageError(unknown_config(name))
    return path.read_text(encoding="utf-8")


def _merged(name: str) -> str:
    """Return a config with those that it builds on, base.yaml apart."""
    _as_written(name)
    (config,) = read_configs(["-c", str(config_folder() / name)])
    settings: Any = config.content
    text: str = yaml.safe_dump(settings, sort_keys=False, width=120, allow_unicode=True)
    return text


def _copy(name: str, target: Path) -> None:
    """Copy a config; its base is still found among the shipped ones."""
    text = _as_written(name)
    if target.is_dir():
        target = target / Path(name).name
    if target.exists():
        raise UsageError(f"lit-rft configs copy: {target} exists already; name another file")
    text = _BASE.sub(lambda match: match[1] + _shipped_base(name, match[2]), text)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{target}: use it with -c {target}")


def _shipped_base(name: str, base: str) -> str:
    """Return the name of a base among the shipped configs; a base beside the config comes first."""
    beside = Path(name).parent / base
    return str(beside) if (config_folder() / beside).is_file() else base


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lit-rft configs", description="List, show and copy the shipped configurations.")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="names, with their purpose")
    listing.add_argument("word", nargs="?", default="", help="only those with this text")
    showing = actions.add_parser("show", help="settings of a config and of those that it builds on")
    showing.add_argument("name", help="of a shipped config, such as luffy/arithmetic.yaml")
    showing.add_argument("--file", action="store_true", help="the file as it is written, with its comments")
    copying = actions.add_parser("copy", help="a file of yours, to change")
    copying.add_argument("name", help="of a shipped config")
    copying.add_argument("to", nargs="?", help="file or folder (a file of the same name, here)")
    return parser
