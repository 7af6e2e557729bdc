"""Break the library in small ways, one at a time, and report which of the mutants the tests kill.

    python tools/mutants.py --number 150 --output runs/mutants.json

mutmut (the extra `mutants`; settings: `[mutmut]` in setup.cfg) makes the mutants in the folder `mutants/`, runs the
unmutated tests first, notes which tests call each function, and runs only those for each of its mutants. This script
draws the same sample each time, leaves out mutants that change nothing but the wording of a text, and writes the
report. The same command resumes an interrupted check; after a change to the code, remove `mutants/` first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: workers are forked

from mutmut import __main__ as mutmut  # the command line; its parts are functions
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

ROOT = Path(__file__).resolve().parents[1]
# mutmut wraps a function to choose its mutant: `constructor_arguments` in the stages would not find the wrapped
# constructors' frames.
file_mutation.NEVER_MUTATE_FUNCTION_NAMES |= {"__init__"}
RESULTS = {1: "killed", 0: "survived", 5: "no tests", 33: "no tests", 36: "timeout", 255: "timeout"}
RESULTS |= dict.fromkeys((24, -24, 152), "timeout")  # SIGXCPU; all other exit codes: error
TEXT = re.compile(r'"[^"]*"|\'[^\']*\'')


def generate() -> dict[str, Path]:
    """Make all mutants; the name and file of each, in a fixed order."""
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # the names of all files
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(1)
    return {name: path for path in sorted(mutmut.walk_mutatable_files()) for name in sorted(exit_codes(path))}


def exit_codes(path: Path) -> dict[str, int | None]:
    """Return the exit code of pytest by mutant of a file: None where it has not run."""
    data = SourceFileMutationData(path=path)
    data.load()
    return data.exit_code_by_key


def changed_lines(name: str, path: Path) -> tuple[list[str], list[str]]:
    """Return the lines that a mutant removes and adds."""
    diff = get_diff_for_mutant(name, path=path).splitlines()[2:]
    return [line[1:] for line in diff if line[:1] == "-"], [line[1:] for line in diff if line[:1] == "+"]


def changes_text_only(name: str, path: Path) -> bool:
    before, after = ([TEXT.sub('""', line) for line in lines] for lines in changed_lines(name, path))
    return before == after


def pattern_of(path: Path, patterns: list[str]) -> str:
    """Return the longest pattern that matches: `*` matches the files of folders in a folder too."""
    return max((pattern for pattern in patterns if fnmatch(str(path), pattern)), key=len, default="")


def sample(mutants: dict[str, Path], patterns: list[str], number: int, seed: int) -> Iterator[str]:
    """Draw the same number of mutants of each pattern's files (all of them where there are fewer)."""
    for index, pattern in enumerate(patterns):
        share = number // len(patterns) + (index < number % len(patterns))
        names = [name for name, path in mutants.items() if pattern_of(path, patterns) == pattern]
        random.Random(seed).shuffle(names)
        kept = (name for name in names if not changes_text_only(name, mutants[name]))
        yield from (name for name, _ in zip(kept, range(share), strict=False))


def line_number(path: Path, name: str) -> int:
    """Find the first line that a mutant changes: by its text, in the function that it is in."""
    lines = path.read_text(encoding="utf-8").splitlines()
    function, class_name = orig_function_and_class_names_from_key(name)
    start = next((n for n, line in enumerate(lines) if class_name and line.startswith(f"class {class_name}")), 0)
    head = re.compile(rf"\s*(async )?def {function}\b")
    start = next(n for n, line in enumerate(lines) if n >= start and head.match(line))
    (changed, *_), _ = changed_lines(name, path)
    return next((n + 1 for n, line in enumerate(lines) if n >= start and line.strip() == changed.strip()), start + 1)


def report(names: list[str], mutants: dict[str, Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in names:
        path = mutants[name]
        code = exit_codes(path)[name]
        result = "not run" if code is None else RESULTS.get(code, "error")
        before, after = changed_lines(name, path)
        place = f"{path}:{line_number(path, name)}"
        rows.append({"mutant": name, "place": place, "result": result, "exit_code": code, "from": before, "to": after})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", help="patterns (default: only_mutate in setup.cfg)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "mutants.json")
    options = parser.parse_args()
    os.chdir(ROOT)
    mutants = generate()
    patterns = options.files or mutmut.config().only_mutate
    names = list(sample(mutants, patterns, options.number, options.seed))
    rows = report(names, mutants)
    if waiting := [row["mutant"] for row in rows if row["result"] == "not run"]:
        mutmut.run.main(["--max-children", str(options.processes), *waiting], standalone_mode=False)
        rows = report(names, mutants)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        if row["result"] != "killed":
            print(f"{row['result']}: {row['place']}", *row["from"], "->", *row["to"], sep="\n    ")
    print(dict(Counter(row["result"] for row in rows)), f"of {len(rows)} mutants: {options.output}")


if __name__ == "__main__":
    main()
