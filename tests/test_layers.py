"""Import rules of the packages, over every import statement, those inside functions included."""

import ast
import fnmatch
import re
import sys
from pathlib import Path

import pytest

import lit_rft

ROOT = Path(__file__).parents[1]

# part -> the parts of lit_rft that it may import. What stands lower knows nothing of what stands higher.
MAY_KNOW: dict[str, set[str]] = {
    "rows": set(),  # of files and data sets
    "episodes": {"rows"},
    "objectives": set(),
    "configs": set(),
    "metrics": {"episodes"},
    "transcripts": {"episodes"},
    "models": {"transcripts"},
    "envs": {"episodes", "rows"},
    "rewards": set(),
    "problems": {"rows"},
    "batches": {"transcripts", "envs", "problems", "episodes"},
    "generation": {"models", "transcripts"},
    "agents": {"generation", "envs", "transcripts", "episodes"},
    "losses": {"rollouts", "objectives"},
    "advantages": {"rollouts", "objectives", "models"},  # of models: sums over processes
    "sources": {"rollouts", "batches", "models", "problems"},  # of models: what processes agree on
    "viewer": {"records", "episodes"},  # of runs, from their files alone
    "records": {"episodes", "rows"},  # of rollouts, on disk
    "rollouts": {"records", "agents", "batches", "envs", "episodes", "generation", "models", "objectives", "rewards"}
    | {"metrics", "problems", "transcripts"},
    # of agents: an episode's transcripts; of models: a tokenizer by its model's name;
    # of rewards: which ground truths can be earned
    "datamodules": {"batches", "rows", "agents", "transcripts", "envs", "episodes", "problems", "models", "rewards"},
}
_BELOW_STAGES = {
    "rollouts", "agents", "generation", "rewards", "envs", "models", "objectives", "transcripts", "episodes", "metrics",
    "losses", "advantages", "sources", "batches", "problems", "records",
}  # fmt: skip
MAY_KNOW["stages"] = _BELOW_STAGES
MAY_KNOW["callbacks"] = _BELOW_STAGES
MAY_KNOW["testing"] = {"stages", "datamodules", *_BELOW_STAGES}  # for tests of users' own parts, and for ours
MAY_KNOW["cli"] = {"stages", "datamodules", "callbacks", "configs", "envs", "episodes", "models", "viewer"}
MAY_KNOW["demo"] = _BELOW_STAGES | MAY_KNOW["cli"] | {"cli"}  # the program on top of everything
MODULES_OF = dict.fromkeys(
    (
        "command_line", "config_files", "config_layers", "config_origin", "config_parser", "env_commands",
        "error_messages",
        "eto", "model_command", "show_command", "configs_command", "doctor_command",
        "completion_command",
    ),
    "cli",
)  # fmt: skip

# part -> the only packages of others that it may import; parts that are not named may import any dependency but ...
MAY_USE: dict[str, set[str]] = {
    "rows": {"pyarrow", "datasets"},
    "episodes": {"pyarrow"},
    "objectives": {"torch"},
    "configs": set(),
    "transcripts": {"torch", "transformers", "tokenizers", "jinja2"},
}
# ... Lightning, which only these know, and torch, which what plays the environments can do without.
KNOW_LIGHTNING = {"testing", "stages", "datamodules", "callbacks", "cli", "demo"}
WITHOUT_TORCH = {"rows", "episodes", "records", "viewer", "envs", "configs"}


def test_the_architecture_page_names_every_part() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = page[page.index("## Packages") : page.index("Imports point down only")]
    names = [path.name for path in (ROOT / "lit_rft").iterdir() if path.name[0] not in "_." and path.name != "py.typed"]
    folders = [name for name in names if (ROOT / "lit_rft" / name / "__init__.py").is_file()]
    patterns = re.findall(r"[\w*]+\.py", listed)
    files = [name for name in names if name.endswith(".py")]
    missing = [name for name in folders if f"{name}/" not in listed]
    missing += [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert folders and not missing, missing


def modules() -> list[Path]:
    tops = ("lit_rft", "datamodules", "callbacks", "configs")
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def part_of(path: Path) -> str:
    """lit_rft/envs/pool.py -> envs, lit_rft/cli.py -> cli, datamodules/x.py -> datamodules; private helpers: ''."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "lit_rft" else parts
    return "" if parts[0].startswith("_") and len(parts) == 1 else MODULES_OF.get(parts[0], parts[0])


def imported(source: str) -> list[str]:
    """The full names of all imports in ``source``; ``from lit_rft import envs`` is lit_rft.envs."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(part: str, source: str) -> list[str]:
    found = []
    for name in imported(source):
        top, *rest = name.split(".")
        if top == "lit_rft":
            other = MODULES_OF.get(rest[0], rest[0]) if rest else "_"
            # _lazy and other private helpers, and __version__, belong to nobody
            allowed = other == part or other.startswith("_") or other in MAY_KNOW[part]
        elif top in sys.stdlib_module_names:
            continue
        else:
            refused = set() if part in KNOW_LIGHTNING else {"lightning", "pytorch_lightning"}
            refused |= {"torch", "transformers", "peft", "torchmetrics"} if part in WITHOUT_TORCH else set()
            allowed = top in MAY_USE.get(part, {top}) and top not in refused
        if not allowed:
            found.append(f"{part} must not import {name}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    source = path.read_text()
    if part == "":  # lit_rft/__init__.py and its private helpers: nothing but each other, everything else lazily
        others = [name for name in imported(source) if name.split(".")[0] not in sys.stdlib_module_names]
        # lit_rft/__init__.py names what it exports for type checkers
        listed = {f"lit_rft.{name}" for name in lit_rft._SUBPACKAGES}
        listed |= {f"{package}.{name}" for name, package in lit_rft._NAMES.items()}
        listed = listed if path.name == "__init__.py" else set()
        assert all(name.startswith("lit_rft._") or name in listed for name in others), others
    else:
        assert part in MAY_KNOW, f"{part} has no place in the layers: add it to MAY_KNOW"
        assert violations(part, source) == []


def test_layers_have_no_cycle() -> None:
    order: list[str] = []
    left = {part: set(below) & MAY_KNOW.keys() for part, below in MAY_KNOW.items()}
    while left:
        free = [part for part, below in left.items() if below <= set(order)]
        assert free, f"a cycle among {sorted(left)}"
        order += free
        left = {part: below for part, below in left.items() if part not in free}
    assert order[-1] == "demo"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("envs", "from lit_rft.agents import Agent"),
        ("envs", "def play():\n    import torch"),
        ("objectives", "from lit_rft import episodes"),
        ("objectives", "import transformers"),
        ("models", "import lightning as L"),
        ("stages", "def fit():\n    from lit_rft.datamodules import x"),
        ("rollouts", "from lit_rft.stages import GRPO"),
        ("datamodules", "import lit_rft.generation.cache"),
        ("episodes", "import numpy"),
        ("cli", "from lit_rft.generation import Completion"),
        ("generation", "from lit_rft.command_line import run"),
    ],
)
def test_a_violation_is_found(part: str, source: str) -> None:
    assert len(violations(part, source)) == 1


def test_what_is_allowed_is_not_found() -> None:
    source = "import os, gymnasium\nfrom lit_rft.episodes import Step\nfrom lit_rft.envs.pool import Job"
    assert violations("envs", source) == []
