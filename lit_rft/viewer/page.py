"""The page: data as compressed blocks, behind a script that shows them. Nothing in it is loaded from elsewhere.

Texts of models never become markup: the blocks are base64, and the script inserts texts only. A content security
policy admits the page's own script and style by their hashes, and no connections.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import lit_rft
from lit_rft.records import GroupRecord, RolloutRecord
from lit_rft.viewer.run import RunData, differing_settings

SCRIPTS = ("dom", "data", "chart", "curves", "filters", "list", "conversation", "detail", "rollouts", "run", "main")
_CHUNK = 400_000  # bytes of JSON in a block of rollouts, which the browser decodes when they are opened
_SHOWN = 160  # characters of a rollout's text in the table
_TOKEN_WISE = ("sampled_log_probs", "old_log_probs", "log_probs", "advantages", "entropy")


def make_page(runs: Sequence[RunData], max_rollouts: int = 10_000) -> str:
    """Make the HTML page of some runs.

    Args:
        runs: with different names.
        max_rollouts: maximum number of rollouts; of more, complete groups are left out evenly.
    """
    groups = [(number, group) for number, run in enumerate(runs) for group in run.groups]
    chosen = _choose(groups, max_rollouts)
    chunks, rows = _chunks(chosen)
    index = {
        "version": lit_rft.__version__,
        "runs": [_run(run) for run in runs],
        "differences": differing_settings([run.config for run in runs]) if len(runs) > 1 else {},
        "groups": rows,
        "rollouts": _table([group for _, group in chosen]),
        "left_out": sum(len(group.rollouts) for _, group in groups) - sum(len(g.rollouts) for _, g in chosen),
    }
    return _fill([("index", _to_json(index)), *((f"chunk-{number}", text) for number, text in enumerate(chunks))])


def _choose(groups: list[tuple[int, GroupRecord]], max_rollouts: int) -> list[tuple[int, GroupRecord]]:
    """Choose groups evenly, so that they have at most this many rollouts."""
    total = sum(len(group.rollouts) for _, group in groups)
    chosen, seen, taken = [], 0, 0
    for number, group in groups:
        seen += len(group.rollouts)
        if total <= max_rollouts or taken + len(group.rollouts) <= seen * max_rollouts // total:
            chosen.append((number, group))
            taken += len(group.rollouts)
    return chosen


def _chunks(groups: Sequence[tuple[int, GroupRecord]]) -> tuple[list[str], list[list[Any]]]:
    """Return the blocks of rollouts as JSON, and for each group run, split, step, task, block and place in it."""
    chunks: list[list[str]] = []
    rows: list[list[Any]] = []
    size = _CHUNK
    for number, group in groups:
        if size >= _CHUNK:
            chunks.append([])
            size = 0
        rows.append([number, group.split, group.step, group.task, len(chunks) - 1, len(chunks[-1])])
        chunks[-1].append(_to_json([_details(rollout) for rollout in group.rollouts]))
        size += len(chunks[-1][-1])
    return [f"[{','.join(chunk)}]" for chunk in chunks], rows


def _details(rollout: RolloutRecord) -> dict[str, Any]:
    """Return a rollout as plain values, token-wise ones rounded for the eye."""
    plain = GroupRecord("", 0, 0, 0, 0, "", [rollout]).to_dict()["rollouts"][0]
    for conversation in plain.get("conversations", ()):
        for name in _TOKEN_WISE:
            if name in conversation:
                conversation[name] = [round(value, 2) for value in conversation[name]]
    if rollout.episode is not None:
        plain["episode"]["extra"] = {}  # the conversations have the same texts
    return dict(plain)


def _table(groups: Sequence[GroupRecord]) -> dict[str, list[Any]]:
    """Return the columns of the table of rollouts."""
    rows = [(n, m, rollout) for n, group in enumerate(groups) for m, rollout in enumerate(group.rollouts)]
    return {
        "group": [number for number, _, _ in rows],
        "member": [member for _, member, _ in rows],
        "reward": [float(f"{rollout.reward:.4g}") for _, _, rollout in rows],
        "advantage": [float(f"{rollout.advantage:.3g}") for _, _, rollout in rows],
        "tokens": [sum(c.num_tokens for c in rollout.conversations) for _, _, rollout in rows],
        "success": [int(_is_success(rollout)) for _, _, rollout in rows],
        "truncated": [int(_is_truncated(rollout)) for _, _, rollout in rows],
        "trace": [int(rollout.trace) for _, _, rollout in rows],
        "levels": [sorted({c.level for c in rollout.conversations}) for _, _, rollout in rows],
        "text": [" ".join(rollout.text[: 2 * _SHOWN].split())[:_SHOWN] for _, _, rollout in rows],
        "id": [rollout.id for _, _, rollout in rows],
    }


def _is_success(rollout: RolloutRecord) -> bool:
    """Return whether an episode solved its task, or a completion's reward counts as right (above 0.5)."""
    return rollout.reward > 0.5 if rollout.episode is None else rollout.episode.outcome.success


def _is_truncated(rollout: RolloutRecord) -> bool:
    return not rollout.finished or (rollout.episode is not None and rollout.episode.outcome.truncated)


def _run(run: RunData) -> dict[str, Any]:
    return {
        "name": run.name, "folder": run.folder, "config": run.config, "environment": run.environment,
        "curves": run.curves,
    }  # fmt: skip


def _fill(blocks: Sequence[tuple[str, str]]) -> str:
    static = files("lit_rft.viewer") / "static"
    page, style = ((static / name).read_text(encoding="utf-8") for name in ("page.html", "style.css"))
    parts = [(static / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    data = "\n".join(_block(name, content) for name, content in blocks)
    contents = {"%policy%": policy, "%style%": style, "%script%": script, "%data%": data}
    return "".join(contents.get(piece, piece) for piece in _pieces(page, contents))


def _pieces(page: str, names: dict[str, str]) -> Iterator[str]:
    """Split a page at its placeholders, each of which occurs once; what replaces them is not searched again."""
    for name in sorted(names, key=page.index):
        before, page = page.split(name)
        yield before
        yield name
    yield page


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _to_json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


def _block(name: str, text: str) -> str:
    data = gzip.compress(text.encode(), compresslevel=5, mtime=0)
    return f'<script type="application/gzip" id="{name}">{base64.b64encode(data).decode()}</script>'
