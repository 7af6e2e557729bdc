"""What the README tells people to do works: its snippets run, its files exist, its commands parse."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.episodes import write_episodes
from lit_rft.testing.tiny import make_episode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT / "docs").as_posix() if path.is_relative_to(ROOT / "docs") else path.name: path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
SNIPPETS = [(name, code) for name, text in PAGES.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SNIPPETS)])
def test_snippets_run(
    page: str, code: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the model: a tiny one takes the place of the default."""
    monkeypatch.chdir(tmp_path)
    write_episodes("episodes.jsonl", [make_episode(seed) for seed in range(3)])
    Path("data").mkdir()
    write_episodes("data/episodes.jsonl", [make_episode(0)])
    names: dict[str, Any] = {}
    exec(code.replace("smollm2-135m-instruct", str(tiny_model_folder)), names)
    assert names


@pytest.mark.parametrize("line", re.findall(r"^    (lit-rft (?:fit|test|predict|validate).*)$", README, re.M))
def test_commands_parse(line: str) -> None:
    arguments = shlex.split(line, comments=True)[2:]
    if "--ckpt_path" in arguments:
        at = arguments.index("--ckpt_path")
        del arguments[at : at + 2]  # belongs to the verb, which is not run here
    build(resolve_configs(arguments), run=False)


@pytest.mark.parametrize("line", re.findall(r"^    (lit-rft (?!configs).*)$", PAGES["problems.md"], re.M))
def test_commands_on_problems_of_ones_own_parse(line: str) -> None:
    test_commands_parse(line.replace("mine.yaml", "luffy/own_problems.yaml"))


HOWTOS = "\n".join(text for name, text in PAGES.items() if name.startswith("howto/"))


@pytest.mark.parametrize("line", re.findall(r"^ +(lit-rft (?:fit|test) .*[^\\])$", HOWTOS, re.M))
def test_commands_of_the_howtos_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    if "/config.yaml" in line or any(name in line for name in ("WandbLogger", "MLFlowLogger")):
        pytest.skip("needs a run, or another package")
    names = {"mine.yaml": "luffy/own_problems.yaml", "CONFIG": "luffy/arithmetic.yaml", "$seed": "1"}
    own = {"my_envs.Brief": "own_environment.Brief", "my_agents.Menu": "own_agent.Menu"}
    for name, value in (names | own).items():
        line = line.replace(name, value)
    test_commands_parse(line)


@pytest.mark.parametrize("flags", re.findall(r"^- `(--[^`]+)`", README, re.M))
def test_flags_parse(flags: str) -> None:
    if flags.startswith("--ckpt_path"):
        return
    build([*resolve_configs(["-c", "glider/scienceworld/sft.yaml"]), *shlex.split(flags)], run=False)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z-]+)\s+#", README)) <= targets
    assert {"help", "demo", "test", "test-slow", "lint", "typecheck", "wheel-test"} <= targets
