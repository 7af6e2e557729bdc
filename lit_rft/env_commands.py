"""Commands for environments, without training: `lit-rft check-env`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console

from lit_rft.config_files import add_import_folders
from lit_rft.envs import check_env
from lit_rft.envs.checking.report import print_report
from lit_rft.envs.gym import import_env
from lit_rft.error_messages import UsageError


class _Parser(argparse.ArgumentParser):
    """Raises `UsageError`, reported in one line, in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def run_check_env(arguments: Sequence[str]) -> None:
    """Check an environment and print the report; exit code 1 if it has errors.

    Raises:
        UsageError: wrong arguments, or an environment that cannot be imported.
    """
    given = vars(_check_parser().parse_args(arguments))
    add_import_folders(iter(()))  # the working directory
    try:
        expert = None if given["expert"] is None else import_env(given.pop("expert"))
        report = check_env(given.pop("env"), given.pop("args"), **{**given, "expert": expert})
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_report(report, Console())
    if report.errors:
        sys.exit(1)


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser("lit-rft check-env", description="Play episodes of an environment and report on it.")
    parser.add_argument("env", help="import path of an environment or a suite: my_envs.Guess")
    parser.add_argument("--args", type=_json_object, default={}, metavar="JSON", help="its keyword arguments")
    parser.add_argument("--options", type=_json_object, default={}, metavar="JSON", help="options of reset")
    parser.add_argument("--episodes", type=int, default=5, help="episodes to play (5)")
    parser.add_argument("--step_limit", type=int, default=50, help="steps of episodes without a limit (50)")
    parser.add_argument("--split", default="train", help="of a suite's episodes (train)")
    parser.add_argument("--expert", help="function of observation and info that chooses the actions; else random ones")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode and of the random actions (0)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one answer (30)")
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value
