"""Configurations that build on others, overlays for every stage, and nothing written twice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import BASES

from lit_rft.cli import config_folder, resolve_configs, shipped_configs
from lit_rft.command_line import build
from lit_rft.config_files import ConfigFile, prepare_arguments, read_configs
from lit_rft.config_layers import follow_overlays, keep_callback_settings, merge
from lit_rft.error_messages import UsageError
from lit_rft.losses import GSPO
from lit_rft.rollouts import MixedPolicyLoss

LUFFY = "luffy/arithmetic.yaml"
GLIDER = "glider/scienceworld"


def arguments(*configs: str) -> list[str]:
    return resolve_configs([part for config in configs for part in ("-c", config)])


def parsed(*configs: str) -> Any:
    """Trainer, stage and data module of a command."""
    return build(arguments(*configs), run=False)


def read(*configs: str) -> list[ConfigFile]:
    return list(read_configs(arguments(*configs)))


@pytest.mark.parametrize(
    ("under", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1]}, {"a+": [2]}, {"a": [1, 2]}),
        ({"a+": [1]}, {"a+": [2]}, {"a+": [1, 2]}),
        ({"a+": [1]}, {"a": [2]}, {"a": [2]}),
        ({"x": {"init_args": {"k": 1}}}, {"x": {"class_path": "C"}}, {"x": {"init_args": {"k": 1}, "class_path": "C"}}),
        ({"x": {"class_path": "C", "k": 1}}, {"x": {"class_path": "C", "k": 2}}, {"x": {"class_path": "C", "k": 2}}),
        ({"x": {"class_path": "C", "k": 1}}, {"x": {"class_path": "D"}}, {"x": {"class_path": "D"}}),
    ],
)  # fmt: skip
def test_merging(under: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]) -> None:
    before = json.dumps([under, over])
    assert merge(under, over) == expected
    assert json.dumps([under, over]) == before


@pytest.mark.parametrize(
    ("under", "over", "same"),
    [
        ("lit_rft.stages.HierarchicalSFT", "HierarchicalSFT", True),
        ("HierarchicalSFT", "lit_rft.HierarchicalSFT", True),
        ("lit_rft.stages.sft.HierarchicalSFT", "lit_rft.HierarchicalSFT", True),
        ("lit_rft.stages.HierarchicalSFT", "mine.HierarchicalSFT", False),
        ("mine.HierarchicalSFT", "mine.stages.HierarchicalSFT", False),
        ("lit_rft_more.HierarchicalSFT", "lit_rft.HierarchicalSFT", False),
        ("lit_rft.stages.HierarchicalSFT", "SFT", False),
        ("lit_rft.stages.HierarchicalSFT", None, False),
    ],
)
def test_another_path_of_a_class_keeps_its_settings(under: str, over: str, same: bool) -> None:
    merged = merge({"x": {"class_path": under, "init_args": {"k": 1}}}, {"x": {"class_path": over}})
    assert merged["x"] == {"class_path": over, **({"init_args": {"k": 1}} if same else {})}


def test_a_short_name_over_a_recipe_keeps_the_recipe(tmp_path: Path) -> None:
    text = f"base: {LUFFY}\nmodel: {{class_path: MixedPolicyGRPO, init_args: {{seed: 3}}}}"
    (tmp_path / "mine.yaml").write_text(text)
    cli = parsed(str(tmp_path / "mine.yaml"))
    assert cli.model.seed == 3 and cli.model.optimizer_settings.learning_rate == 2e-4


def test_a_file_builds_on_one_beside_it_or_on_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: common.yaml\nmodel: {init_args: {objective: {group_size: 3}}}")
    (tmp_path / "common.yaml").write_text(f"base: {LUFFY}\ntrainer: {{max_steps: 5}}")
    cli = parsed(str(tmp_path / "mine.yaml"))
    assert cli.model.objective.group_size == 3  # mine
    assert cli.trainer.max_steps == 5  # beside it
    assert cli.model.optimizer_settings.learning_rate == 2e-4  # the shipped recipe
    assert cli.model.policy_settings.lora.target_modules == "all-linear"  # what that builds on
    assert cli.trainer.default_root_dir == "runs/mine"  # not the folder of the recipe


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.yaml": "base: nowhere.yaml"}, r"a\.yaml: base: no 'nowhere\.yaml' beside the file or among the shipped"),
        ({"a.yaml": "base: b.yaml", "b.yaml": "base: a.yaml"}, r"base: \w\.yaml builds on itself"),
        ({"a.yaml": "base: [b.yaml]"}, r"base: expected the name of one config, got \['b\.yaml'\]"),
        ({"a.yaml": "every_stage: 3"}, r"every_stage: expected true or false, got 3"),
    ],
)
def test_bases_that_cannot_be(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=expected):
        prepare_arguments(arguments(LUFFY, str(tmp_path / "a.yaml")))


def test_a_wrong_key_in_a_file_with_a_base_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {LUFFY}\nmodel: {{init_args: {{objective: {{group_sise: 3}}}}}}")
    with pytest.raises(UsageError, match=r"no key 'group_sise'; allowed: .*did you mean 'group_size'") as raised:
        parsed(str(tmp_path / "mine.yaml"))
    assert len(str(raised.value)) < 300


def test_a_second_entry_of_a_callback_changes_its_settings() -> None:
    (callback,) = (c for c in parsed("luffy/openr1_math.yaml").trainer.callbacks if type(c).__name__ == "RunCheckpoint")
    assert callback._every_n_train_steps == 100
    stops = [{"class_path": "EarlyStopping", "init_args": {"monitor": name}} for name in "ab"]
    twice = json.dumps({"trainer": {"callbacks+": stops}})
    monitors = [c.monitor for c in parsed(LUFFY, twice).trainer.callbacks if type(c).__name__ == "EarlyStopping"]
    assert monitors == ["a", "b"]  # of other libraries there may be several


CHECKPOINT = "lit_rft.callbacks.RunCheckpoint"


def callbacks_of(entry: Any, **more: Any) -> str:
    return yaml.safe_dump({**more, "trainer": {"callbacks+": [entry]}})


@pytest.mark.parametrize("later", [CHECKPOINT, "RunCheckpoint", "lit_rft.callbacks.run_checkpoint.RunCheckpoint"])
@pytest.mark.parametrize("how", ["base", "another file", "text"])
def test_an_entry_changes_what_it_names_alone(how: str, later: str, tmp_path: Path) -> None:
    first = {"class_path": CHECKPOINT, "init_args": {"every_n_steps": 50, "mode": "min"}}
    (tmp_path / "b.yaml").write_text(callbacks_of(first, base=LUFFY))
    over = callbacks_of({"class_path": later, "init_args": {"monitor": "val/mean", "mode": "max"}})
    (tmp_path / "c.yaml").write_text(over + ("base: b.yaml\n" if how == "base" else ""))
    files = [str(tmp_path / name) for name in (["c.yaml"] if how == "base" else ["b.yaml", "c.yaml"])]
    if how == "text":
        files[1] = json.dumps(yaml.safe_load(over))
    (callback,) = (c for c in parsed(*files).trainer.callbacks if type(c).__name__ == "RunCheckpoint")
    assert callback._every_n_train_steps == 50
    assert (callback.monitor, callback.mode) == ("val/mean", "max")  # max is the default, and written


def test_an_entry_keeps_the_settings_of_base_yaml() -> None:
    text = json.dumps({"trainer": {"callbacks+": {"class_path": "RunProgressBar", "init_args": {"leave": True}}}})
    (file,) = read(text)
    earlier = {"RunProgressBar": {"class_path": "lit_rft.callbacks.RunProgressBar", "init_args": {"refresh_rate": 7}}}
    entry = keep_callback_settings(file.content, earlier)["trainer"]["callbacks+"]
    assert entry == {"class_path": "RunProgressBar", "init_args": {"refresh_rate": 7, "leave": True}}
    prepared = " ".join(prepare_arguments(arguments(LUFFY, text)))
    assert '"refresh_rate": 1' in prepared


def test_a_list_replaces_the_callbacks_before_it_and_a_bare_name_changes_no_setting() -> None:
    earlier: dict[str, Any] = {"RunCheckpoint": {"class_path": CHECKPOINT, "init_args": {"every_n_steps": 50}}}
    bare = {"trainer": {"callbacks+": ["RunCheckpoint", {"class_path": CHECKPOINT, "init_args": None}, 3, "mine.A"]}}
    entries = keep_callback_settings(bare, earlier)["trainer"]["callbacks+"]
    assert [entry["init_args"] for entry in entries[:2]] == [{"every_n_steps": 50}] * 2 and entries[2:] == [3, "mine.A"]
    replacing = {"trainer": {"callbacks": ["RunCheckpoint"]}}
    assert keep_callback_settings(replacing, earlier) == replacing


def test_callbacks_and_adapters_are_written_once() -> None:
    texts = {name: (config_folder() / name).read_text() for name in shipped_configs()}
    homes = {
        "^  callbacks:": "base.yaml",
        r"^\s+alpha:": "policy.yaml",
        "ScoreTable": "base.yaml",
        "EpisodeText": "episodes.yaml",
        "CompletionText": "prompts.yaml",
    }
    for pattern, home in homes.items():
        assert [name for name, text in texts.items() if re.search(pattern, text, re.M)] == [home], pattern


# --- chains of stages ------------------------------------------------------------------------------------------------


def folder_of(*configs: str) -> str:
    prepared = prepare_arguments(arguments(*configs))
    if "--trainer.default_root_dir" in prepared:
        return prepared[prepared.index("--trainer.default_root_dir") + 1]
    return str([file.folder for file in read(*configs) if file.folder][-1])


def start_of(*configs: str) -> str:
    prepared = prepare_arguments(arguments(*configs))
    contents = [file.content for file in read_configs(prepared)]
    starts = [c.get("model", {}).get("init_args", {}).get("policy", {}).get("start_from") for c in contents]
    return str([start for start in starts if start][-1])


@pytest.mark.parametrize("overlay", [None, f"{GLIDER}/debug.yaml", f"{GLIDER}/smollm2_360m.yaml"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([f"{GLIDER}/sft.yaml"], [f"{GLIDER}/offline_rl.yaml"]),
        ([f"{GLIDER}/offline_rl.yaml"], [f"{GLIDER}/online.yaml"]),
        ([f"{GLIDER}/{name}.yaml" for name in ("sft", "flat_sft")],
         [f"{GLIDER}/{name}.yaml" for name in ("offline_rl", "flat_offline_rl")]),
        ([f"{GLIDER}/sft.yaml"], ["luffy/scienceworld.yaml"]),
        ([f"{GLIDER}/llama3_8b.yaml"], [f"{GLIDER}/llama3_8b_offline_rl.yaml"]),
        ([f"{GLIDER}/llama3_8b_offline_rl.yaml"], [f"{GLIDER}/llama3_8b_online.yaml"]),
    ],
)  # fmt: skip
def test_a_stage_starts_from_the_run_before_with_the_same_overlay(
    before: list[str], after: list[str], overlay: str | None
) -> None:
    more = [overlay] if overlay else []
    assert start_of(*after, *more) == f"{folder_of(*before, *more)}/checkpoints/last.ckpt"


def test_other_overlays_and_the_users_files_are_left_alone(tmp_path: Path) -> None:
    release, debug = f"{GLIDER}/release.yaml", f"{GLIDER}/debug.yaml"
    assert start_of(f"{GLIDER}/offline_rl.yaml", release) == f"runs/{GLIDER}/sft/checkpoints/last.ckpt"
    assert folder_of(f"{GLIDER}/offline_rl.yaml", release, debug) == f"runs/{GLIDER}/offline_rl-release-debug"
    assert start_of(f"{GLIDER}/offline_rl.yaml", release, debug) == f"runs/{GLIDER}/sft-debug/checkpoints/last.ckpt"
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {init_args: {policy: {start_from: runs/x/checkpoints/last.ckpt}}}")
    assert start_of(f"{GLIDER}/offline_rl.yaml", debug, str(mine)) == "runs/x/checkpoints/last.ckpt"
    files = {"files": ["runs/a/episodes/predicted.jsonl", "data/b"], "number": 3}
    assert follow_overlays(files, "-x") == {"files": ["runs/a-x/episodes/predicted.jsonl", "data/b"], "number": 3}


# --- overlays that meet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlays", [("release", "vllm"), ("vllm", "release")])
def test_overlays_that_both_set_the_loss(overlays: tuple[str, str]) -> None:
    loss = parsed(LUFFY, *(f"luffy/{name}.yaml" for name in overlays)).model.loss
    assert loss == MixedPolicyLoss(clip_low=None, clip_high=None, normalizer="max_length", importance_cap=2.0)


def test_overlays_keep_another_loss_or_refuse_it() -> None:
    gspo = json.dumps({"model": {"init_args": {
        "loss": {"class_path": "lit_rft.losses.GSPO"}, "objective": {"traces_per_group": 0},
    }}})  # fmt: skip
    assert parsed(LUFFY, "luffy/release.yaml", gspo).model.loss == GSPO()
    with pytest.raises(UsageError, match="loss: no key 'importance_cap'; allowed: clip_low, clip_high"):
        parsed(LUFFY, gspo, "luffy/vllm.yaml")


# --- comments --------------------------------------------------------------------------------------------------------


def keys_of(text: str) -> list[tuple[str, bool]]:
    """The dotted keys of a configuration in order, each with whether a comment explains it, on its line or above."""
    keys: list[tuple[str, bool]] = []
    path: list[tuple[int, str]] = []
    commented = False
    for line in text.splitlines():
        if line.strip().startswith("#"):
            commented = True
            continue
        match = re.match(r"^([\s-]*)([\w+]+):", line)
        if match:
            indent = len(match.group(1))
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, match.group(2))]
            keys.append((".".join(name for _, name in path), commented or "  #" in line))
        commented = False
    return keys


def test_each_key_is_explained_where_it_first_stands() -> None:
    order = [
        *BASES,
        *(f"{GLIDER}/{stage}.yaml" for stage in ("sft", "offline_rl", "online")),
        "luffy/own_problems.yaml",
    ]
    order += [name for name in shipped_configs() if name not in order]
    said_by_name = ("class_path", "init_args", "model", "data", "trainer", "policy", "optimizer", "url", "env")
    explained: set[str] = set()
    missing = []
    for name in order:
        for key, comment in keys_of((config_folder() / name).read_text()):
            last = key.rpartition(".")[2]
            if last not in explained and not comment and last not in said_by_name:
                missing.append(f"{name}: {key}")
            explained.add(last)
    assert not missing, "\n".join(missing)


def test_comments_are_found() -> None:
    text = "# head\na:\n  b: 1  # why\n  c: 2\n  # above\n  d+:\n    - e: 3\n"
    assert keys_of(text) == [("a", True), ("a.b", True), ("a.c", False), ("a.d+", True), ("a.d+.e", False)]
    assert yaml.safe_load(text)


@pytest.mark.parametrize(("added", "expected"), [({"c": 3}, [1, {"c": 3}]), (None, [1]), ([2], [1, 2])])
def test_an_entry_a_list_or_nothing_can_be_appended(added: Any, expected: list[Any]) -> None:
    assert merge({"callbacks": [1]}, {"callbacks+": added}) == {"callbacks": expected}
