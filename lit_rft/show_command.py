"""The command `lit-rft show`: runs as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_rft._files import replacing
from lit_rft._records import RecordError
from lit_rft.error_messages import OneLineParser, UsageError
from lit_rft.viewer.page import make_page
from lit_rft.viewer.run import read_run, run_names


def run_show(arguments: Sequence[str]) -> None:
    """Write the page of some runs.

    Raises:
        UsageError: wrong arguments, or a folder that is not a run.
    """
    given = _parser().parse_args(arguments)
    out = Path(given.out or Path(given.runs[0]) / "run.html")
    try:
        names = run_names([Path(run) for run in given.runs])
        runs = [read_run(Path(run), name) for run, name in zip(given.runs, names, strict=True)]
        page = make_page(runs, given.max_rollouts)
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except (OSError, RecordError, ValueError) as error:
        raise UsageError(f"lit-rft show: {error}") from error
    curves = len({name for run in runs for name in run.curves})
    rollouts = sum(len(group.rollouts) for run in runs for group in run.groups)
    print(f"{out}: {curves} curves, {rollouts} rollouts, {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lit-rft show", description="Write curves, rollouts and settings of runs as an HTML file.")
    parser.add_argument("runs", nargs="+", help="folders of runs, trainer.default_root_dir; several are overlaid")
    parser.add_argument("--out", help="file to write (run.html in the first run's folder)")
    parser.add_argument(
        "--max_rollouts", type=int, default=10_000, help="of more, complete groups are left out evenly (10000)"
    )
    return parser
