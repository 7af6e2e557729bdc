"""Break the library in small ways, one at a time, and report which of the mutants the tests kill.

    python tools/mutants.py --number 150 --output runs/mutants

The tests run once as they are, in order to see which of them reach which lines. Each mutant is then written into a
temporary copy of the repository and meets only the tests that reach its line, the package's own first, for at most
30 seconds. mutmut (the extra `mutants`) proposes the changes. Left out are those that change nothing but the wording of
a text, and whatever stands in a `raise`.

The sample takes the same number of mutants of each package, those with the smallest digests: it is the same each time,
and a change to the code replaces only the mutants of the lines that it touches. `results.jsonl` in the output folder
has a line for each mutant that has run. The same command resumes an interrupted check.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import libcst as cst
from forked import import_large_packages
from forked_tests import in_child, measure
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.file_mutation import create_mutations

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("objectives", "losses", "advantages", "rollouts", "agents", "stages")
TESTS = [f"tests/{name}" for name in (*PACKAGES, "sources", "plugins")]
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "data", "mutants")
LIMIT = 400.0  # seconds for one mutant: one that runs on without an end is killed
TEXT = re.compile(r'"[^"]*"|\'[^\']*\'')
KILLED, SURVIVED, UNREACHED, ERROR = "killed", "survived", "no tests", "error"
# pytest's exit codes; 2 and 4: a file of tests, or what it imports, raises. None: the time limit.
RESULTS = {0: SURVIVED, 1: KILLED, 2: KILLED, 4: KILLED, 5: UNREACHED, None: KILLED}


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    Attributes:
        name: File, function and change, and a number where a function has the same change twice.
        path: The file, relative to the repository.
        lines: Ranges of lines (first, last) that a test of it reaches: the statement, the function, the file.
        before: The code that is replaced.
        after: The code in its place.
        write: Makes the whole file with the change.
    """

    name: str
    path: str
    lines: tuple[tuple[int, int], ...]
    before: str
    after: str
    write: Callable[[], str]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Make the mutants of a file: those that change more than a text, and stand in no `raise`."""
    relative = str(path.relative_to(ROOT))
    code = path.read_text(encoding="utf-8")
    module, mutations, _, _ = create_mutations(relative, code)
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    parents, positions = wrapper.resolve(ParentNodeProvider), wrapper.resolve(PositionProvider)
    seen: Counter[str] = Counter()
    for mutation in mutations:
        node, above = mutation.original_node, [mutation.original_node]
        while above[-1] in parents:
            above.append(parents[above[-1]])
        before, after = (module.code_for_node(each) for each in (node, mutation.mutated_node))
        if any(isinstance(each, cst.Raise) for each in above) or TEXT.sub('""', before) == TEXT.sub('""', after):
            continue
        scopes = [each for each in above if isinstance(each, cst.FunctionDef | cst.ClassDef)]
        scope = ".".join(each.name.value for each in reversed(scopes))
        statements = (cst.BaseStatement, cst.BaseSmallStatement, cst.Else)
        statement = next(each for each in above if isinstance(each, statements))
        name = f"{relative}::{scope}: {before} -> {after}"
        seen[name] += 1
        last = positions[node].end.line
        lines = [(positions[each].start.line, last if each is statement else positions[each].end.line)
                 for each in (statement, *scopes[:1])]  # fmt: skip
        write = partial(changed_code, module, node, mutation.mutated_node)
        yield Mutant(f"{name} #{seen[name]}", relative, (*lines, (1, code.count("\n") + 1)), before, after, write)


def changed_code(module: cst.Module, before: cst.CSTNode, after: cst.CSTNode) -> str:
    return module.deep_replace(before, after).code


def sample(number: int, seed: int) -> list[Mutant]:
    """Draw the same number of mutants of each package."""
    chosen: list[Mutant] = []
    for index, package in enumerate(PACKAGES):
        files = sorted((ROOT / "lit_rft" / package).rglob("*.py"))
        mutants = (mutant for path in files for mutant in mutants_of(path))
        share = number // len(PACKAGES) + (index < number % len(PACKAGES))
        order = sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.name}".encode()).digest())
        chosen += order[:share]
    return chosen


def copy_repository(folder: Path) -> Path:
    """Copy what the tests need; its packages lie as they install."""
    tree = folder / "repository"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name in ("datamodules", "callbacks", "configs"):
        (tree / "lit_rft" / name).symlink_to(Path("..") / name)
    return tree


def try_mutant(mutant: Mutant, tests: list[str], tree: Path) -> dict[str, Any]:
    """Write the mutant into the copy, run the tests, and put the original back."""
    target, begun, source = tree / mutant.path, time.monotonic(), mutant.write()
    original = target.read_text(encoding="utf-8")
    answer: dict[str, Any] = {"code": 5, "failed": []}
    if tests:
        target.write_text(source, encoding="utf-8")
        answer = in_child(tree, tree.parent / "mutant.log", LIMIT, ["-x", *tests])
        target.write_text(original, encoding="utf-8")
    pairs = enumerate(zip(original.splitlines(), source.splitlines(), strict=False), 1)
    return {
        "mutant": mutant.name,
        "place": f"{mutant.path}:{next((number for number, (old, new) in pairs if old != new), 0)}",
        "result": RESULTS.get(answer["code"], ERROR),
        "exit_code": answer["code"],
        "killed_by": (answer["failed"] or [None])[0],
        "tests": tests,
        "seconds": round(time.monotonic() - begun, 1),
        "from": mutant.before,
        "to": mutant.after,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the results by package, and what was not killed."""
    columns = (KILLED, SURVIVED, UNREACHED, ERROR)
    lines = [f"| package | mutants | {' | '.join(columns)} | share killed |", "|---|" + "---|" * (len(columns) + 2)]
    for package in (*PACKAGES, ""):
        results = Counter(row["result"] for row in rows if row["place"].startswith(f"lit_rft/{package}"))
        number = sum(results.values())
        counts = " | ".join(str(results[column]) for column in columns)
        share = f"{results[KILLED] / number:.0%}" if number else ""
        lines.append(f"| {package or 'all'} | {number} | {counts} | {share} |")
    others = [row for row in rows if row["result"] != KILLED]
    details = [f"{row['result']}: {row['place']}\n  {row['from']}\n  -> {row['to']}" for row in others]
    return "\n".join(details + lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30, help="seconds of tests for one mutant, as measured")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "mutants")
    parser.add_argument("--again", nargs="+", metavar="TEST", help="run the survivors again, with these tests only")
    parser.add_argument("--only", default="lit_rft/", metavar="PATH", help="run the mutants of these files alone")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # mutmut reads its settings here
    results = output / "results.jsonl"
    rows = {row["mutant"]: row for row in map(json.loads, results.read_text().splitlines())} if results.exists() else {}
    mutants = sample(options.number, options.seed)
    again = {name for name, row in rows.items() if row["result"] != KILLED} if options.again else set()
    waiting = [mutant for mutant in mutants if (mutant.name in again if options.again else mutant.name not in rows)]
    waiting = [mutant for mutant in waiting if mutant.path.startswith(options.only)]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # no compiled mutant remains
    sys.dont_write_bytecode = True
    import_large_packages()
    with tempfile.TemporaryDirectory() as folder, results.open("a", encoding="utf-8") as file:
        tree = copy_repository(Path(folder))
        reaching = None if options.again else measure(tree, output, options.budget, TESTS)
        begun = time.monotonic()
        for done, mutant in enumerate(waiting, 1):
            tests = options.again if reaching is None else reaching.tests_for(mutant.path, mutant.lines)
            row = rows[mutant.name] = try_mutant(mutant, tests, tree)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            left = f"{(time.monotonic() - begun) / done * (len(waiting) - done) / 60:.0f} minutes left"
            print(f"{done}/{len(waiting)} {row['result']} {row['place']} {row['seconds']:.0f} s; {left}", flush=True)
    print(table([rows[mutant.name] for mutant in mutants if mutant.name in rows]))


if __name__ == "__main__":
    main()
