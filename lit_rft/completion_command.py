"""The command `lit-rft completion`: a script that completes commands and keys in a shell."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from lit_rft.error_messages import OneLineParser, UsageError

SHELLS = ("bash", "fish", "powershell", "tcsh", "zsh")
_DESCRIPTION = """\
Write a script that completes the verbs fit, validate, test and predict, their keys and the values of choices.

  lit-rft completion bash > ~/.local/share/bash-completion/completions/lit-rft
"""


def run_completion(arguments: Sequence[str]) -> None:
    """Print the script of a shell; jsonargparse and shtab make it from the keys.

    Raises:
        UsageError: wrong arguments, or shtab is missing.
    """
    shell = _parser().parse_args(arguments).shell
    if importlib.util.find_spec("shtab") is None:
        raise UsageError("lit-rft completion needs shtab: pip install 'lit-rft[completion]'")
    from jsonargparse import set_parsing_settings

    from lit_rft.command_line import build

    set_parsing_settings(add_print_completion_argument=True)
    try:
        build([f"--print_completion=shtab-{shell}"], run=True)
    finally:
        set_parsing_settings(add_print_completion_argument=False)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "lit-rft completion", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell to write it for")
    return parser
