"""Break the library in small ways, one at a time, and count how many breaks the tests notice.

    python tools/mutants.py --number 150 --output runs/mutants.jsonl

A mutant is one changed operator, comparison, number or truth value in `PARTS`. It is made in a copy of the tree, never
in the tree itself. Results are appended to the output as they come: the same command goes on where an earlier one
ended.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# part of the library -> the tests that have to notice
PARTS = {
    "objectives": ["tests/objectives", "tests/stages/test_first_steps.py"],
    "generation": ["tests/generation"],
    "agents": ["tests/agents"],
    "rollouts": ["tests/rollouts", "tests/stages/test_grpo_members.py"],
    "stages": ["tests/stages"],
}
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutate(node: ast.AST) -> str | None:
    """Change a node in place; what was changed, or None where it is no place for a mutant."""
    holder = "ops" if isinstance(node, ast.Compare) else "op"
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare):
        old = node.ops[0] if isinstance(node, ast.Compare) else node.op
        if (new := OPERATORS.get(type(old))) is None:
            return None
        setattr(node, holder, [new(), *node.ops[1:]] if isinstance(node, ast.Compare) else new())
        return f"{type(old).__name__} -> {new.__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        old_value = node.value
        node.value = not old_value if isinstance(old_value, bool) else old_value + 1
        return f"{old_value!r} -> {node.value!r}"
    return None


def sites(path: Path) -> Iterator[int]:
    """The places of a file, by their number in `ast.walk`."""
    for number, node in enumerate(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if mutate(copy.deepcopy(node)) is not None:
            yield number


def sample(number: int, seed: int) -> list[tuple[str, int]]:
    """Draw mutants, the same for the same tree and seed."""
    files = sorted(file for part in PARTS for file in (ROOT / "lit_rft" / part).rglob("*.py"))
    every = [(str(file.relative_to(ROOT)), site) for file in files for site in sites(file)]
    return random.Random(seed).sample(every, min(number, len(every)))


def try_mutant(name: str, site: int, seconds: float) -> dict[str, object]:
    """Test one mutant in a copy of the tree. Tests that hang have noticed it, too."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    node = list(ast.walk(tree))[site]
    found = {"file": name, "site": site, "line": getattr(node, "lineno", 0), "change": mutate(node)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in ("lit_rft", "tests"):
            shutil.copytree(ROOT / part, work / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("setup.cfg", "pyproject.toml", "README.md", "docs", "configs", "datamodules", "callbacks"):
            (work / part).symlink_to(ROOT / part)
        (work / name).write_text(ast.unparse(tree), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *PARTS[Path(name).parts[1]]]
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {**found, "killed": True, "by": "time"}
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest itself failed ({done.returncode}): {done.stdout[-2000:]}{done.stderr[-2000:]}")
    by = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {**found, "killed": done.returncode != 0, "by": by[0] if by else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900, help="for the tests of one mutant")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    results = {(row["file"], row["site"]): row for row in map(json.loads, lines)}
    wanted = sample(options.number, options.seed)
    for mutant in wanted:
        if mutant not in results:
            results[mutant] = try_mutant(*mutant, options.seconds)
            with options.output.open("a") as stream:
                stream.write(json.dumps(results[mutant]) + "\n")
    survivors = [results[mutant] for mutant in wanted if not results[mutant]["killed"]]
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mutants were noticed; survivors:")
    for row in survivors:
        print(f"  {row['file']}:{row['line']}: {row['change']}")


if __name__ == "__main__":
    main()
