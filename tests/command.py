"""The command line in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from lit_rft import cli


def main(arguments: Sequence[str]) -> None:
    """Run `lit-rft`; an error of the user's is raised as ValueError with the line that is printed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            cli.main(arguments)
    except SystemExit as error:
        raise ValueError(printed.getvalue()) from error


def flags(**keys: Any) -> list[str]:
    """Make options of keys, whose dots are written as two underscores."""
    return [part for key, value in keys.items() for part in (f"--{key.replace('__', '.')}", str(value))]
