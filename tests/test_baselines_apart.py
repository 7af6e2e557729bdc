"""The rest of the library does not know the baselines: each could be taken out, or be a package of its own."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# modules of each baseline, and the other modules that may import them (docs/baselines.md has the reasons)
BASELINES: dict[str, tuple[list[str], list[str]]] = {
    "react": (["agents.react", "agents.examples"], ["agents.reflexion", "agents.swift_sage"]),
    "reflexion": (["agents.reflexion", "stages.core.trials"], ["stages.core.evaluate_episodes"]),
    "swift_sage": (["agents.swift", "agents.swift_sage", "agents.switch"], []),
    "chat_server": (
        ["generation.chat_server", "generation.chat_conversations", "rollouts.chat_levels", "transcripts.messages"],
        ["rollouts.episode_runner", "agents.player", "stages.core.settings"],
    ),
    "nat": (["agents.marked", "episodes.failures"], []),
    "eto": (
        ["stages.preference", "objectives.preference", "episodes.pairs", "datamodules.pairs", "datamodules.preferences",
         "eto"],
        ["cli", "episodes.failures"],
    ),
    "agent_tuning": (["datamodules.agent_tuning", "datamodules.instructions"], []),
    "ppo": (
        ["stages.ppo", "stages.core.ppo_update", "stages.core.values", "models.value_head", "objectives.gae",
         "rollouts.chains"],
        ["advantages.hae", "advantages.reinforce_plus_plus", "stages.core.critic_updates"],
    ),
    "ilql": (
        ["stages.ilql", "stages.core.token_critics", "stages.core.token_q_update", "models.token_critic",
         "objectives.token_q"],
        [],
    ),
    "best_of": (["generation.best_of", "stages.core.utterance_q"], ["stages.offline_rl"]),
}  # fmt: skip


def modules() -> dict[str, str]:
    """Text of each module of the library, by its name without `lit_rft`; packages, which only export, are left out."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("lit_rft."): path
        for folder in ("lit_rft", "datamodules", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
    }
    return {name: path.read_text() for name, path in files.items() if path.name != "__init__.py"}


def defined(text: str) -> set[str]:
    """Names of a module's classes and functions."""
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def imports(text: str) -> set[tuple[str, str]]:
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {(node.module or "", alias.name) for node in nodes for alias in node.names}


def is_package(name: str) -> bool:
    """Return whether an import path is a package, which exports the names of its modules."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or (ROOT / path.name).is_dir()  # data modules and callbacks are at the top


@pytest.mark.parametrize("baseline", BASELINES)
def test_no_other_module_imports_a_baselines(baseline: str) -> None:
    parts, users = BASELINES[baseline]
    texts = modules()
    assert set(parts) | set(users) <= set(texts)
    own = {f"lit_rft.{part}" for part in parts}
    names = {name for part in parts for name in defined(texts[part])}  # by whatever package they are imported
    importing = set()
    for module, text in texts.items():
        for source, imported in imports(text):
            if source in own or (source.startswith("lit_rft") and imported in names and is_package(source)):
                importing.add(module)
    assert importing - set(parts) <= set(users)


def test_every_test_that_the_docs_name_exists() -> None:
    """In docs/baselines.md, by their files or functions."""
    page = (ROOT / "docs" / "baselines.md").read_text()
    tests = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    functions = set(re.findall(r"^def (test_\w+)", "\n".join(tests.values()), re.M))
    files = {path.name for path in tests}
    named = set(re.findall(r"\btest_\w+(?:\.py)?", page))
    assert len(named) > 40
    assert {name for name in named if name not in (files if name.endswith(".py") else functions)} == set()
