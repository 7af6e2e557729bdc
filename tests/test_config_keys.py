"""Every key of a config has an effect: the built objects differ when it is changed, and something reads it.

What a stage records of its arguments (hyper-parameters) does not count: it holds them whether they are used or not.
"""

import ast
import functools
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.config_files import read_configs
from lit_rft.stages import HierarchicalSFT

ROOT = Path(__file__).parents[1]
RECORDS = ("_hparams", "_hparams_initial", "_arguments", "_log_hyperparams")
# other values of keys that take few, by their last part
OTHER: dict[str, Any] = {
    "schedule": "linear",
    "normalizer": "tokens",
    "target_modules": "attention",
    "prompt_template": "think",
    "long_traces": "cut",
    "train_half": "second",
    "env": "lit_rft.envs.games.KeyRooms",
    "columns": {"prompt": "exercise"},
    "eval_columns": {"prompt": "exercise"},
    "train_files": ["other.jsonl"],
    "eval_files": ["other.jsonl"],
    "lora": {"rank": 3},
    "clip_low": 0.1,
    "clip_high": 0.1,
    "policy_shaping": 0.3,
    "num_samples_by_source": {"a": 3},
    "max_trace_length": 9,
    "train_episodes_per_task": 3,
    "start_from": "other.ckpt",
    "seeds": {"train": 5, "dev": 1},
}


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a configuration; classes are no settings."""
    for name, value in content.items():
        path = f"{key}.{name}".lstrip(".")
        if isinstance(value, dict) and value and name not in OTHER:
            yield from leaves(value, path)
        elif name != "class_path":
            yield path, value


def changed(name: str, value: Any) -> Any:
    """Another valid value of a key."""
    if name in OTHER and OTHER[name] != value:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.001
    if isinstance(value, str):
        return "chat" if name == "prompt_template" else value + "x"
    if isinstance(value, list):
        return [*value, "x"]
    raise AssertionError(f"{name}: name another value than {value!r} in OTHER")


def fingerprint(value: Any, outer: tuple[int, ...] = ()) -> Any:
    """Settings of an object, and of the objects in it, as plain data."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, dict):
        return {str(key): fingerprint(part, outer) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [fingerprint(part, outer) for part in value]
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Path):
        return str(value)
    if id(value) in outer:
        return "itself"
    outer, kind = (*outer, id(value)), type(value)
    parts = dict(getattr(value, "__dict__", {})) if kind.__module__.startswith("lit_rft") else {}
    for name in RECORDS:
        parts.pop(name, None)
    known = {name: part for name, part in parts.items() if not name.startswith("_abc")}
    return {"class": kind.__qualname__, **{name: fingerprint(part, outer) for name, part in known.items()}}


def instantiated(cli: Any, config: Any) -> str:
    config = config.clone()
    config.pop("trainer", None)
    objects = cli.parser.instantiate_classes(config)
    return json.dumps([fingerprint(objects.model), fingerprint(objects.data)], sort_keys=True)


def without_effect(cli: Any, content: dict[str, Any]) -> list[str]:
    """The keys of a configuration that can be changed without a change of stage and data module."""
    before = instantiated(cli, cli.config)
    unread = []
    for key, value in leaves({part: content[part] for part in ("model", "data") if content.get(part)}):
        config = cli.config.clone()
        config[key] = changed(key.rpartition(".")[2], value)
        if instantiated(cli, config) == before:
            unread.append(key)
    return unread


RECIPES = [
    "glider/scienceworld/offline_rl.yaml",
    "luffy/openr1_math.yaml",
    "luffy/scienceworld.yaml",
    "grpo/text_env.yaml",
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_changes_what_is_built(name: str) -> None:
    arguments = resolve_configs(["-c", name])
    (file,) = read_configs(arguments)
    assert without_effect(build(arguments, run=False), file.content) == []


# --- what reads them --------------------------------------------------------------------------------------------------


# where dataclasses of settings and of exchangeable parts are
SETTINGS = (
    "lit_rft/stages/core/settings.py",
    "lit_rft/stages/core/values.py",
    "lit_rft/stages/core/critic_updates.py",
    "lit_rft/stages/core/token_critics.py",
    "lit_rft/envs/pool_settings.py",
    "lit_rft/generation/sampling.py",
    "lit_rft/generation/vllm.py",
    "lit_rft/generation/chat_server.py",
    "lit_rft/models/lora.py",
    "lit_rft/rollouts/losses.py",
    "lit_rft/rollouts/advantages.py",
    "lit_rft/losses/",
    "lit_rft/advantages/",
    "lit_rft/sources/",
    "lit_rft/agents/",
)


def library() -> list[tuple[Path, ast.Module]]:
    files = [path for top in ("lit_rft", "datamodules", "callbacks") for path in sorted((ROOT / top).rglob("*.py"))]
    return [(path, ast.parse(path.read_text())) for path in files]


def attributes_read(tree: ast.AST) -> set[str]:
    """Names of attributes that code reads, apart from an object's own in its constructor, where they are checked."""
    names: set[str] = set()
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, constructs = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            constructs = node.name in ("__init__", "__post_init__")
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            of_itself = isinstance(node.value, ast.Name) and node.value.id == "self"
            names |= set() if constructs and of_itself else {node.attr}
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "getattr"
            and isinstance(node.args[1], ast.Constant)
        ):
            names.add(node.args[1].value)
        waiting += [(child, constructs) for child in ast.iter_child_nodes(node)]
    return names


def fields_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Class and name of each field of the dataclasses of settings and of exchangeable parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(part) for part in node.decorator_list):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield node.name, part.target.id


def kept_and_never_read(tree: ast.AST, read: set[str]) -> Iterator[tuple[str, str]]:
    """Class and name of constructor arguments that are only kept, under their own names, or not even that."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                names = [a.arg for a in (*function.args.args[1:], *function.args.kwonlyargs)]
                for name in names:
                    loads = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name]
                    if not loads or (_only_kept(function, name, len(loads)) and name not in read):
                        yield node.name, name


def _only_kept(function: ast.FunctionDef, name: str, loads: int) -> bool:
    """Whether a constructor stores an argument and does nothing else with it, not even with what it stored."""
    attributes = [node for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr == name]
    stored = [node for node in attributes if isinstance(node.ctx, ast.Store)]
    return bool(stored) and len(stored) == len(attributes) and loads == 1


def test_a_key_without_effect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a stage takes and leaves."""
    original = HierarchicalSFT.__init__

    def forgetful(self: Any, *args: Any, length_coef: float = 0.0, **kwargs: Any) -> None:
        original(self, *args, **kwargs)

    cli = build(resolve_configs(["-c", "glider/scienceworld/sft.yaml"]), run=False)
    content = {"model": {"init_args": {"length_coef": 0.0, "chunk_tokens": 256}}}
    assert without_effect(cli, content) == []
    monkeypatch.setattr(HierarchicalSFT, "__init__", functools.wraps(original)(forgetful))
    assert without_effect(cli, content) == ["model.init_args.length_coef"]


def test_every_setting_is_read() -> None:
    trees = library()
    read = set().union(*(attributes_read(tree) for _, tree in trees))
    names = {path: str(path.relative_to(ROOT)) for path, _ in trees}
    assert all(any(name.startswith(place) for name in names.values()) for place in SETTINGS), "a place has moved"
    parts = [(path, tree) for path, tree in trees if names[path].startswith(SETTINGS)]
    unread = [
        f"{path.name}: {owner}.{name}" for path, tree in parts for owner, name in fields_of(tree) if name not in read
    ]
    assert len([name for _, tree in parts for name in fields_of(tree)]) > 80
    unread += [
        f"{path.name}: {owner}({name})" for path, tree in trees for owner, name in kept_and_never_read(tree, read)
    ]
    assert not unread, unread


def test_a_setting_that_nothing_reads_is_found() -> None:
    source = """
@dataclass
class Settings:
    rate: float
    forgotten: int
    def __post_init__(self):
        assert self.forgotten > 0
class Stage:
    def __init__(self, settings, kept, dropped, used):
        self.settings, self.kept = settings, kept
        self.weights = {"high": used}
    def step(self):
        return self.settings.rate
"""
    tree = ast.parse(source)
    read = attributes_read(tree)
    assert [name for _, name in fields_of(tree) if name not in read] == ["forgotten"]
    assert [name for _, name in kept_and_never_read(tree, read)] == ["kept", "dropped"]
