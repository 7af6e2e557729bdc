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
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import pytest
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


class Recorder:
    """A plug-in of pytest: the seconds that each test takes, its lines, and the tests that fail."""

    def __init__(self, measured: coverage.Coverage | None = None) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.measured is not None:
            self.measured.switch_context(f"{item.nodeid}|setup")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if self.measured is not None:
            self.measured.switch_context(f"{item.nodeid}|call")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def in_child(tree: Path, log: Path, limit: float, arguments: list[str], data: Path | None = None) -> dict[str, Any]:
    """Run pytest in a fork of this process, which has the large packages imported, but not the library.

    Returns:
        The exit code (None: stopped at the time limit), the seconds by test, and the tests that failed.
    """
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setpgid(0, 0)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.chdir(tree)
            sys.path[:0] = [str(tree)]
            os.environ["PYTHONPATH"] = str(tree)
            code = run_pytest(arguments, answer, data)
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": None, "seconds": {}, "failed": []}
        time.sleep(0.1)
    return json.loads(answer.read_text()) if answer.exists() else {"code": 3, "seconds": {}, "failed": []}


def run_pytest(arguments: list[str], answer: Path, data: Path | None) -> int:
    """Run pytest here, and write down how it went."""
    measured = None
    if data is not None:
        measured = coverage.Coverage(data_file=str(data), source=["lit_rft"], config_file=False)
        measured.set_option("run:relative_files", True)
        measured.start()
    recorder = Recorder(measured)
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    code = int(pytest.main([*options, *arguments], plugins=[recorder]))
    if measured is not None:
        measured.stop()
        measured.save()
    answer.write_text(json.dumps({"code": code, "seconds": recorder.seconds, "failed": recorder.failed}))
    return code


class Reaching:
    """The tests that reach a line, and how long they take."""

    def __init__(self, data: Path, seconds: dict[str, float], failed: list[str], budget: float) -> None:
        self.data = coverage.CoverageData(str(data))
        self.data.read()
        self.seconds = {test: seconds[test] for test in seconds if test not in failed}
        self.budget = budget

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Choose tests by the lines that they reach, the quickest files first, up to the budget."""
        package = f"tests/{Path(mutant.path).parts[1]}/"
        contexts = self.data.contexts_by_lineno(mutant.path)
        reached: set[str] = set()
        for first, last in mutant.lines:
            reached = reached or {each for line in range(first, last + 1) for each in contexts.get(line, []) if each}
        # a file that is only imported has no lines of a test
        reached = reached or {f"{test}|call" for test in self.seconds if test.startswith(package)}
        chosen = self._within_budget(reached, package)
        return chosen

    def _within_budget(self, reached: set[str], package: str) -> list[str]:
        # what a fixture of a module reaches belongs to all tests of the module
        shared = {context.partition("::")[0] for context in reached if context.endswith("|setup")}
        calls = {context.removesuffix("|call") for context in reached}
        files: dict[str, list[str]] = defaultdict(list)
        for test in self.seconds:
            file = test.partition("::")[0]
            if test in calls or file in shared:
                files[file].append(test)
        cost = {file: sum(self.seconds[test] for test in tests) for file, tests in files.items()}
        chosen: list[str] = []
        left = self.budget
        for file in sorted(files, key=lambda file: (not file.startswith(package), cost[file])):
            for test in sorted(files[file], key=self.seconds.__getitem__) if cost[file] > left else files[file]:
                if self.seconds[test] <= left or not chosen:
                    chosen.append(test)
                    left -= self.seconds[test]
        return chosen


def measure(tree: Path, output: Path, budget: float) -> Reaching:
    """Run all tests as they are, unless the library is the one that was measured last."""
    files = sorted((tree / "lit_rft").rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    data, record = output / "reached.coverage", output / "measured.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("digest") != digest:
        print("Running the tests as they are ...", flush=True)
        data.unlink(missing_ok=True)
        known = in_child(tree, output / "measuring.log", 3600, TESTS, data)
        if known["code"] not in (0, 1) or not known["seconds"]:
            sys.exit(f"the tests did not run: exit code {known['code']}, see {output / 'measuring.log'}")
        record.write_text(json.dumps(known | {"digest": digest}))
    print(f"{len(known['seconds'])} tests; left out, since they fail without a change: {known['failed'] or 'none'}")
    return Reaching(data, known["seconds"], known["failed"], budget)


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
    import_large_packages()
    with tempfile.TemporaryDirectory() as folder, results.open("a", encoding="utf-8") as file:
        tree = copy_repository(Path(folder))
        reaching = None if options.again else measure(tree, output, options.budget)
        begun = time.monotonic()
        for done, mutant in enumerate(waiting, 1):
            tests = options.again if reaching is None else reaching.tests_for(mutant)
            row = rows[mutant.name] = try_mutant(mutant, tests, tree)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            left = f"{(time.monotonic() - begun) / done * (len(waiting) - done) / 60:.0f} minutes left"
            print(f"{done}/{len(waiting)} {row['result']} {row['place']} {row['seconds']:.0f} s; {left}", flush=True)
    print(table([rows[mutant.name] for mutant in mutants if mutant.name in rows]))


def import_large_packages() -> None:
    """Import once what takes seconds: the forked processes have it."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads cannot be forked
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # no compiled mutant remains
    sys.dont_write_bytecode = True
    import lightning
    import peft
    import transformers

    _ = lightning.Trainer, peft.LoraConfig, transformers.PreTrainedModel, transformers.AutoModelForCausalLM


if __name__ == "__main__":
    main()
