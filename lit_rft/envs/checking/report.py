"""The report of `check_env`, as an object and as tables for the console."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

Level = Literal["error", "warning", "note"]

DEFAULTS = {
    "task_description": "the first observation",
    "env": "the name of the class",
    "env_version": "empty",
    "score": "the sum of the rewards so far",
    "success": "terminated with a reward above 0",
    "valid": "every action is valid",
    "achieved": "no subgoals, no intrinsic rewards",
    "admissible": "no choice among admissible actions",
    "reason": "goal, failed, step_limit or truncated",
    "metrics": "none",
}
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_EXAMPLE_STEPS, _EXAMPLE_WIDTH = 4, 400


class Finding(NamedTuple):
    """A finding of `check_env`.

    Attributes:
        level: ``error``: training would fail, or learn from wrong data. ``warning``: training would work, but probably
            not as intended. ``note``: information.
        where: method, key or part of the check.
        message: expected and actual value.
    """

    level: Level
    where: str
    message: str


@dataclass
class EnvReport:
    """The report of `check_env`.

    Attributes:
        name: of the environment or suite.
        findings: errors, warnings and notes, without repeats.
        keys: key of info -> the methods that report it (``reset``, ``step`` or ``reset, step``).
        returns: sum of the rewards of each episode that did not fail.
        lengths: number of steps of each of these.
        ended: whether each of these ended by itself.
        failed: number of episodes that an exception or an answer of the wrong form ended.
        example: the first episode as (action, observation); the first action is empty.
        resets_per_second, steps_per_second: of the environment itself; None without measurements.
        repeatable: whether the same seed and actions gave the same episode again; None if not tested.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    failed: int = 0
    example: list[tuple[str, str]] = field(default_factory=list)
    resets_per_second: float | None = None
    steps_per_second: float | None = None
    repeatable: bool | None = None

    @property
    def errors(self) -> list[Finding]:
        """Findings that would make training fail, or learn from wrong data."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def defaults(self) -> dict[str, str]:
        """Keys of info that the environment does not report -> their default."""
        return {name: default for name, default in DEFAULTS.items() if name not in self.keys}

    def add(self, level: Level, where: str, message: str) -> None:
        """Add a finding, unless it is already there."""
        finding = Finding(level, where, message)
        if finding not in self.findings:
            self.findings.append(finding)


def print_report(report: EnvReport, console: Console) -> None:
    """Print an example, the keys of info with their defaults, the figures and the findings."""
    console.print(_example(report), _keys(report), _figures(report))
    for finding in sorted(report.findings, key=lambda finding: list(_STYLES).index(finding.level)):
        line = writable(f"{finding.level}: {finding.where}: {finding.message}")
        console.print(Text(line, _STYLES[finding.level]))
    kinds = {level: sum(finding.level == level for finding in report.findings) for level in _STYLES}
    summary = ", ".join(f"{number} {level}{'s' * (number != 1)}" for level, number in kinds.items())
    console.print(Text(f"{report.name}: {summary}", "bold red" if kinds["error"] else "bold green"))


def _example(report: EnvReport) -> Table:
    table = Table(title=f"{report.name}: the first episode", show_header=False, title_justify="left")
    for action, observation in report.example[: _EXAMPLE_STEPS + 1]:
        if action:
            table.add_row("action", Text(_shorten(action), "cyan"))
        table.add_row("observation", Text(_shorten(observation)))
    if not report.example:
        table.add_row("", "none started")
    if (rest := len(report.example) - (_EXAMPLE_STEPS + 1)) > 0:
        table.add_row("...", f"{rest} more step{'s' * (rest != 1)}")
    return table


def _shorten(text: str) -> str:
    text = writable(text)
    return text if len(text) <= _EXAMPLE_WIDTH else f"{text[:_EXAMPLE_WIDTH]}... ({len(text)} characters)"


def writable(text: str) -> str:
    """Return a text with escapes in place of what UTF-8 cannot hold (lone surrogates)."""
    return text.encode(errors="backslashreplace").decode()


def _keys(report: EnvReport) -> Table:
    table = Table(title="keys of info", title_justify="left")
    for heading in ("key", "reported by", "default in its place"):
        table.add_column(heading)
    for name, default in DEFAULTS.items():
        reported = report.keys.get(name)
        table.add_row(name, reported or "-", "" if reported else default)
    return table


def _figures(report: EnvReport) -> Table:
    table = Table(title="figures", show_header=False, title_justify="left")
    number = len(report.returns)
    if number or report.failed:
        failed = f", {report.failed} by an error" * (report.failed > 0)
        table.add_row("episodes", f"{number + report.failed}, {sum(report.ended)} of them ended by themselves{failed}")
    if number:
        low, mean, high = min(report.returns), sum(report.returns) / number, max(report.returns)
        table.add_row("return", f"{low:.3g} to {high:.3g}, mean {mean:.3g}")
        table.add_row("steps", f"{min(report.lengths)} to {max(report.lengths)}")
    for name, rate in (("resets", report.resets_per_second), ("steps", report.steps_per_second)):
        table.add_row(f"{name} per second", "-" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}")
    known = {True: "yes", False: "no", None: "not tried"}[report.repeatable]
    table.add_row("same episode from the same seed and actions", known)
    return table
