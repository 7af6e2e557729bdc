"""Configuration files: a folder for each combination, functions beside them, keys where they belong."""

import itertools
import json
import sys
from pathlib import Path

import lightning as L
import pytest
import yaml
from test_cli import BASES, OVERLAYS

from lit_rft.cli import config_folder, main, resolve_configs, shipped_configs
from lit_rft.command_line import build
from lit_rft.config_files import check_places, name_run_folder, prepare_arguments, read_configs
from lit_rft.error_messages import UsageError

LUFFY, OFFLINE = "luffy/arithmetic.yaml", "glider/scienceworld/offline_rl.yaml"


def run_folder(*configs: str, more: tuple[str, ...] = ()) -> str:
    """The folder that a command with these configurations runs in."""
    arguments = resolve_configs([part for config in configs for part in ("-c", config)] + list(more))
    files = list(read_configs(arguments))
    named = name_run_folder(arguments, files)
    if "--trainer.default_root_dir" in named:
        return named[named.index("--trainer.default_root_dir") + 1]
    return [file.folder for file in files if file.folder][-1] or ""


def test_no_two_shipped_methods_share_a_folder() -> None:
    folders = {}
    for name in shipped_configs():
        if name not in (*BASES, "fsdp.yaml"):  # no methods: what recipes have in common, and more devices
            folders[name] = run_folder(*OVERLAYS.get(name, [name]))
    assert len(set(folders.values())) == len(folders), folders
    assert folders[LUFFY] == "runs/luffy/arithmetic"
    assert folders["luffy/on_policy.yaml"] == "runs/luffy/arithmetic-on_policy"


def test_no_two_combinations_of_overlays_share_a_folder() -> None:
    overlays = [f"luffy/{name}.yaml" for name in ("gsm_symbolic", "release", "on_policy", "without_shaping", "vllm")]
    sets = [combination for size in range(4) for combination in itertools.combinations(overlays, size)]
    luffy = [run_folder(recipe, *some) for recipe in (LUFFY, "luffy/openr1_math.yaml") for some in sets]
    flat, release = (f"glider/scienceworld/{name}.yaml" for name in ("flat_offline_rl", "release"))
    glider = [run_folder(OFFLINE, *some) for some in ((), (flat,), (release,), (flat, release))]
    assert len(set(luffy + glider)) == 2 * len(sets) + 4
    assert run_folder(OFFLINE, release, flat) == run_folder(OFFLINE, flat, release)


def test_a_folder_that_the_user_names_is_taken_as_it_is(tmp_path: Path) -> None:
    mine, plain = tmp_path / "mine.yaml", tmp_path / "plain.yaml"
    mine.write_text("trainer: {default_root_dir: elsewhere}\nmodel: {init_args: {}}")
    plain.write_text("model: {init_args: {batching: {micro_batch_tokens: 7}}}")
    overlay = "luffy/on_policy.yaml"
    assert run_folder(LUFFY, overlay, str(mine)) == "elsewhere"
    assert run_folder(str(mine), overlay) == "elsewhere-on_policy"
    assert run_folder(LUFFY, str(plain)) == "runs/luffy/arithmetic-plain"
    assert run_folder(LUFFY, "fsdp.yaml") == "runs/luffy/arithmetic"  # other devices are no other method
    named = ("--trainer.default_root_dir", "here")
    assert run_folder(LUFFY, overlay, more=named) == "here"


def test_the_folder_reaches_trainer_and_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = build(resolve_configs(["-c", LUFFY, "-c", "luffy/on_policy.yaml"]), run=False).trainer
    assert trainer.default_root_dir == trainer.logger.save_dir == "runs/luffy/arithmetic-on_policy"


@pytest.mark.parametrize(
    ("logger", "save_dir", "name"),
    [
        ([], "run", "tensorboard"),
        (["--trainer.logger.init_args.save_dir", "x"], "x", "tensorboard"),
        (["--trainer.logger.init_args.name", "mine"], "run", "mine"),
        (["--trainer.logger", "CSVLogger"], "run", "lightning_logs"),
        (["--trainer.logger", "[{class_path: CSVLogger, init_args: {save_dir: x}}]"], "x", "lightning_logs"),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.init_args.name", "a"], "run", "a"),
    ],
)
def test_loggers_keep_what_the_user_says(logger: list[str], save_dir: str, name: str) -> None:
    cli = build(resolve_configs(["-c", LUFFY, "--trainer.default_root_dir", "run", *logger]), run=False)
    (made,) = cli.trainer.loggers
    assert (made.save_dir, made.name) == (save_dir, name)


def test_functions_beside_the_config_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("configs", "work"):
        (tmp_path / folder).mkdir()
        code = f"def f(completions, rows):\n    return [1.0 for _ in completions]  # {folder}\n"
        (tmp_path / folder / f"rewards_in_{folder}.py").write_text(code)
    config = tmp_path / "configs" / "mine.yaml"
    config.write_text("model: {init_args: {reward: rewards_in_configs.f}}")
    monkeypatch.chdir(tmp_path / "work")
    cli = build(resolve_configs(["-c", LUFFY, "-c", str(config)]), run=False)
    assert cli.model.reward.__module__ == "rewards_in_configs"
    cli = build(resolve_configs(["-c", LUFFY, "--model.init_args.reward", "rewards_in_work.f"]), run=False)
    assert cli.model.reward.__module__ == "rewards_in_work"
    assert str(config_folder()) not in sys.path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", "luffy/on_policy.yaml"], r"^model.class_path is not set, and \S+on_policy.yaml would change"),
        (["--model", "MixedPolicyGRPO", "-c", "luffy/gsm_symbolic.yaml"], "^data.class_path is not set"),
        (["--model.init_args.policy.model", "x"], r"^model.class_path is not set, and --model.init_args.policy.model"),
    ],
)
def test_overlays_need_a_recipe(arguments: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        prepare_arguments(resolve_configs(arguments))


@pytest.mark.parametrize("key", ["model", "agent", "agent.class_path"])
def test_what_the_data_take_from_the_stage_is_not_set_twice(key: str) -> None:
    value = {"data": {"init_args": {key.partition(".")[0]: "false"}}}
    for more in (["-c", json.dumps(value)], [f"--data.init_args.{key}", "false"], [f"--data.{key}=false"]):
        with pytest.raises(UsageError, match=r"^data.init_args.\w+: the data module follows model.init_args"):
            prepare_arguments(resolve_configs(["-c", OFFLINE, *more]))


def test_shipped_configs_have_their_keys_in_place() -> None:
    for name in shipped_configs():
        for file in read_configs(["-c", str(config_folder() / name)]):
            check_places(file)
        assert isinstance(yaml.safe_load((config_folder() / name).read_text()), dict)


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("gradient_clip_val", "1.0", "optimizer.max_grad_norm"),
        ("accumulate_grad_batches", "2", "data.init_args.batch_size"),
    ],
)
def test_trainer_keys_without_effect_name_ours(key: str, value: str, ours: str, tmp_path: Path) -> None:
    folder = ("--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu")
    cli = build(resolve_configs(["-c", LUFFY, *folder, f"--trainer.{key}", value]), run=False)
    with pytest.raises(ValueError, match=rf"trainer\.{key}={value} has no effect here: set .*{ours}"):
        cli.trainer.fit(cli.model, [])


def test_loggers_of_a_verb_write_into_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[L.Trainer] = []
    monkeypatch.setattr(L.Trainer, "fit", lambda self, *args, **kwargs: made.append(self))
    folder = ["--trainer.default_root_dir", str(tmp_path)]
    for logger, name in (([], "tensorboard"), (["--trainer.logger", "CSVLogger"], "lightning_logs")):
        main(["fit", "-c", LUFFY, *folder, *logger])
        assert made[-1].logger is not None
        assert (made[-1].logger.save_dir, made[-1].logger.name) == (str(tmp_path), name)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("trainer: {max_epochs: x}", r"trainer.max_epochs: expected int, got x"),
        ("trainer: {max_epoch: 3}", r"no key 'trainer.max_epoch'"),
        ("model: {rewrad: 3}", r"model.rewrad: no such key"),
        ("model: {init_args: {optimizer: {learning_rat: 1}}}", r"model.init_args.optimizer: no key 'learning_rat'"),
        ("model: {init_args: {optimizer: {learning_rate: -1}}}", r"model.init_args.optimizer.learning_rate must be"),
        ("model: {class_path: GRPOO}", r"model: no class 'GRPOO'"),
        ("data: {init_args: {model: x}}", r"data.init_args.model: the data module follows"),
    ],
)
def test_errors_name_the_file_of_the_key(base: str, expected: str, tmp_path: Path) -> None:
    wrong, mine, after = (tmp_path / name for name in ("wrong.yaml", "mine.yaml", "after.yaml"))
    wrong.write_text(base)
    mine.write_text("base: wrong.yaml\nmodel: {init_args: {optimizer: {schedule: constant}}}")
    after.write_text("model: {init_args: {optimizer: {warmup_steps: 2}}}\ntrainer: {max_steps: 3}")
    files = ["-c", LUFFY, "-c", str(mine), "-c", str(after)]
    with pytest.raises(UsageError, match=f"^{wrong.resolve()}: {expected}"):
        build(resolve_configs(files), run=False)


def test_errors_name_no_file_for_a_key_of_the_command_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("trainer: {max_epochs: 3}")
    with pytest.raises(UsageError, match=r"^trainer.max_epochs: expected int, got x"):
        build(resolve_configs(["-c", LUFFY, "-c", str(mine), "--trainer.max_epochs", "x"]), run=False)


def test_a_missing_class_names_the_base_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("model: {init_args: {seed: 3}}")
    (tmp_path / "mine.yaml").write_text("base: low.yaml\ntrainer: {max_steps: 3}")
    with pytest.raises(UsageError, match=rf"^model.class_path is not set, and {tmp_path.resolve()}/low.yaml would"):
        prepare_arguments(["-c", str(tmp_path / "mine.yaml")])
