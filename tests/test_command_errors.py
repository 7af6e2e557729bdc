"""Wrong commands end in one line that names the key, the value and what is allowed; nothing that is set goes unread."""

import errno
import threading
from pathlib import Path

import lightning as L
import pytest
from jsonargparse import Namespace

from lit_rft.cli import main, resolve_configs
from lit_rft.command_line import best_checkpoint, build
from lit_rft.error_messages import UsageError, innermost, is_meant_for_users, one_line_errors

AGENT = "model.init_args.agent.init_args"
SFT, LUFFY = "glider/scienceworld/sft.yaml", "luffy/arithmetic.yaml"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """Exit code and what is printed, of a command that cannot be run (without a verb: four times as fast)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        build(resolve_configs(list(arguments)), run=False)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trainer.val", "7"], "no key 'trainer.val'; allowed: trainer.accelerator"),
        (["--trainer.max_epoch", "7"], "did you mean 'trainer.max_epochs'?"),
        (["--seed", "7"], "no key 'seed'"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs: expected int, got many"),
        (["--model.init_args.optimizer.learning_rate", "-1"], "optimizer.learning_rate must be > 0 and finite, got -1"),
        (["--model.init_args.optimizer.max_grad_norm", ".nan"], "optimizer.max_grad_norm must be >= 0, got nan"),
        (["--model.init_args.optimizer.learning_rate", "fast"], "optimizer.learning_rate: expected float, got fast"),
        (["--model.init_args.optimizer.schedule", "square"], "one of 'constant', 'linear', 'cosine', got square"),
        ([f"--{AGENT}.max_length", "0"], f"{AGENT}.max_length must be > 0, got 0"),
        (["--model.init_args.acting.sampling.temperature", "-1"], "temperature"),
        (["--data.init_args.batch_size", "0"], "data.init_args.batch_size must be >= 1, got 0"),
        (["--data.init_args.batch_size", "1.5"], "data.init_args.batch_size: expected int, got 1.5"),
        (["--data.init_args.suite", "mine"], "data.init_args.suite: no class 'mine'"),
        (["--data.init_args.suite", "lit_rft.envs.scienceworld.glder"], "has no attribute 'glder'"),
        (["--model.init_args.batching.packing", "perhaps"], "batching.packing: expected bool, got perhaps"),
        (["--data.init_args.train_half", "third"], "one of 'first', 'second', got third"),
        (["--model", "HierarchicalSTF"], "did you mean 'HierarchicalSFT'?"),
        (["--data", "Nothing"], "data: no class 'Nothing'; allowed: AgentTuningDataModule, EpisodeGroupDataModule"),
        (["--trainer.logger", "Nothing"], "trainer.logger: no class 'Nothing'"),
        (["--trainer.callbacks", "ScoreTabel"], "did you mean 'ScoreTable'?"),
        (["--trainer.accelerator", "abacus"], "invalid accelerator name"),
        (["--trainer.devices", "-3"], "devices"),
        (["--trainer.precision", "17"], "trainer.precision: expected"),
        (["--seed_everything", "-1"], "seed_everything: -1 is not in bounds"),
        (["--seed_everything", "x"], "seed_everything: expected bool or int, got x"),
        (["--policy.model", "x"], "no key 'policy.model'; write --model.init_args.policy.model"),
        (["--batch_size", "2"], "write --data.init_args.batch_size"),
        (["--model.init_args.polcy.model", "x"], "did you mean 'policy'?"),
        (["--model.nonsense", "3"], "no key 'nonsense'"),
        (["--model.init_args.policy.lora.target_modules.x", "3"], "target_modules"),
        (["stray"], "stray"),
        (["--model.help", "Nothing"], "no class 'Nothing'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, error = fails(capsys, "-c", SFT, "--trainer.default_root_dir", str(tmp_path), *arguments)
    assert code == 2 and error.count("\n") == 1 and expected in error, error
    assert "Traceback" not in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {policy: {model: x}}", "model.policy: no such key; arguments of the class belong under model"),
        ("data: {batch_size: 3}", "write data.init_args.batch_size"),
        ("model: {class_path: lit_rft.stages.HierarchicalSFT, policy: {}}", "write model.init_args.policy"),
        ("model: {init_arg: {policy: {}}}", "did you mean 'init_args'?"),
        ("model: {init_args: {lenght_coef: 1}}", "did you mean 'length_coef'?"),
        ("model: {init_args: {policy: {lora: {rnk: 1}}}}", "rnk"),
        ("trainer: {max_epohs: 1}", "did you mean 'trainer.max_epochs'?"),
        ("trainer: {callbacks+: [{class_path: lit_rft.callbacks.EpisodeText, number: 3}]}",
         "trainer.callbacks+.0.number: no such key"),
        ("trainer: {logger: {class_path: CSVLogger, save_dir: x}}", "write trainer.logger.init_args.save_dir"),
        ("trainr: {max_epochs: 1}", "no key 'trainr.max_epochs'; allowed: config, seed_everything, trainer"),
        ("max_epochs: 1", "trainer.max_epochs"),
        ("model: [", "not valid YAML"),
        ("a: b: c", "line 1, column 5: not valid YAML"),
        ("- model", "expected keys such as trainer, model and data"),
        ("hello", "expected keys such as trainer, model and data"),
        ("# nothing yet", "mine.yaml: expected keys such as trainer, model and data, got no key"),
        ("trainer: 3", "trainer"),
        ("model: 3", "model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["after", "before"])
def test_wrong_config_files_are_one_line(
    text: str, expected: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    files = ["-c", SFT, "-c", str(path)] if place == "after" else ["-c", str(path), "-c", SFT]
    code, error = fails(capsys, *files)
    assert code == 2 and error.count("\n") == 1, error
    assert expected in error or place == "before", error


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SFT, "data.init_args.micro_batch_tokens"),
        (SFT, "data.init_args.packing"),
        ("glider/scienceworld/online.yaml", "data.init_args.batch_size"),
        ("glider/scienceworld/online.yaml", "data.init_args.medium_per_expert"),
        ("luffy/scienceworld.yaml", "data.init_args.medium_files"),
        ("luffy/scienceworld.yaml", "data.init_args.outcomes"),
        ("luffy/arithmetic.yaml", "model.init_args.micro_batch_tokens"),
    ],
)
def test_keys_without_effect_are_refused(config: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = fails(capsys, "-c", config, f"--{key}", "1")
    assert code == 2 and f"no key '{key.rpartition('.')[2]}'; allowed:" in error, error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", LUFFY, "--learning_rate", "3"], "write --model.init_args.optimizer.learning_rate\n"),
        (["-c", LUFFY, "--model=ILQL", "--learning_rate", "3"],
         "write --model.init_args.optimizer.learning_rate or --model.init_args.critic.learning_rate\n"),
        (["-c", LUFFY, "--seed", "3"], "write --seed_everything or --model.init_args.answering.seed or "
         "--model.init_args.seed or --data.init_args.seed\n"),
    ],
)  # fmt: skip
def test_only_keys_of_the_commands_classes_are_suggested(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *arguments])
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", LUFFY], f"{LUFFY}: no option; a config comes after -c: write -c {LUFFY}"),
        (["fit"], "expected a config with stage and data (-c NAME; `lit-rft configs` lists them), got no --model"),
        (["test", "--model", "GRPO"], "got no --data\n"),
        (["check_env", "x"], "or one of the commands check-env, collect, completion, configs, doctor, eto, "
         "make-model, show first, got 'check_env'; did you mean 'check-env'?"),
        (["test", "-c", LUFFY, "--ckpt_path", "best", "--trainer.default_root_dir", "nowhere"],
         "there is no nowhere/checkpoints/best.ckpt; `fit` writes it with a RunCheckpoint whose `monitor`"),
    ],
)  # fmt: skip
def test_first_steps_on_the_command_line_get_advice(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and expected in error, error


@pytest.mark.parametrize("dirpath", [None, "elsewhere"])
def test_the_best_checkpoint_is_that_in_the_runs_folder(dirpath: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" if dirpath is None else tmp_path / dirpath
    folder.mkdir()
    (folder / "best.ckpt").touch()
    settings = Namespace(monitor="val/score", dirpath=dirpath and str(folder))
    callbacks = [Namespace(class_path="lit_rft.callbacks.RandomState"),
                 Namespace(class_path="lit_rft.callbacks.RunCheckpoint", init_args=settings)]  # fmt: skip
    trainer = Namespace(callbacks=callbacks, default_root_dir=str(tmp_path))
    assert best_checkpoint(trainer) == str(folder / "best.ckpt")


def test_commands_without_a_verb_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["train", "-c", SFT], ["-c", SFT, "fit"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert "expected one of the verbs fit, validate, test, predict" in error


def test_a_verb_with_a_wrong_key_and_a_missing_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["fit", "-c", SFT, "--trainer.val", "7"], "no key 'trainer.val'"),
        (
            ["predict", "-c", SFT, "--ckpt_path", "nowhere/x.ckpt", "--trainer.limit_predict_batches", "0"],
            "ckpt_path: there is no file nowhere/x.ckpt",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and expected in error


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max_epochs: 3", "no key 'max_epochs'; write --trainer.max_epochs"),
        ("trainer: {max_epoch: 3}", "did you mean 'trainer.max_epochs'?"),
        ("ckpt: last", "did you mean 'ckpt_path'?"),
    ],
)
def test_wrong_keys_of_a_verbs_config_are_looked_up_among_the_verbs(
    content: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(SystemExit):
        main(["fit", "-c", SFT, "-c", str(tmp_path / "mine.yaml")])
    assert expected in capsys.readouterr().err


def test_a_file_in_another_encoding_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("# für alle\ntrainer: {max_epochs: 1}".encode("latin-1"))
    code, error = fails(capsys, "-c", SFT, "-c", str(path))
    assert code == 2 and f"{path}: not UTF-8 (byte 3): save it as UTF-8" in error


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_RFT_DEBUG", "0")  # given back afterwards
    with pytest.raises(UsageError, match="must be > 0"):
        main(["fit", "-c", SFT, "--model.init_args.optimizer.learning_rate", "-1", "--debug"])


def test_a_full_disk_in_a_loggers_thread_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = threading.excepthook
    with one_line_errors():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert printed == "lit-rft: error: No space left on device (OSError); --debug shows where\n"
    assert threading.excepthook is before


def test_bugs_keep_their_traceback() -> None:
    def error_of(function: object) -> BaseException:
        try:
            function()  # type: ignore[operator]
        except Exception as error:
            return error
        raise AssertionError

    assert is_meant_for_users(error_of(lambda: build(["-c", "/nowhere.yaml"], run=False)))
    assert not is_meant_for_users(error_of(lambda: int("x")))
    assert not is_meant_for_users(error_of(lambda: {}["x"]))


def test_the_innermost_reason_of_a_tree() -> None:
    tree = """Does not validate against any of the Union subtypes
Subtypes: [<class 'A'>, <class 'NoneType'>]
Errors:
  - Does not validate against any of the Union subtypes
    Errors:
      - learning_rate must be > 0, got -1.0
      - Expected a <class 'NoneType'>
  - Expected a <class 'NoneType'>
Given value: Namespace(class_path='x')"""
    assert innermost(tree) == "learning_rate must be > 0, got -1.0"
    assert innermost("plain\nwords") == "plain; words" or innermost("plain\nwords") == "plain words"


@pytest.mark.parametrize("key", ["enable_checkpointing", "enable_progress_bar"])
def test_what_base_adds_can_be_switched_off(key: str) -> None:
    trainer = build(resolve_configs(["-c", SFT, f"--trainer.{key}", "false"]), run=False).trainer
    kinds = {"enable_checkpointing": "ModelCheckpoint", "enable_progress_bar": "ProgressBar"}
    names = [base.__name__ for callback in trainer.callbacks for base in type(callback).__mro__]
    assert kinds[key] not in names and "ScoreTable" in names


def test_a_barebones_trainer_can_be_made() -> None:
    trainer = build(resolve_configs(["-c", LUFFY, "--trainer.barebones", "true"]), run=False).trainer
    assert trainer.barebones and trainer.logger is None and isinstance(trainer, L.Trainer)


def test_help_takes_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    helps = (("model", "HierarchicalSFT", "level_weights"), ("data", "MathPromptDataModule", "eval_tasks"))
    for option, name, key in helps:
        with pytest.raises(SystemExit) as stopped:
            main(["fit", f"--{option}.help", name])
        assert not stopped.value.code and key in capsys.readouterr().out
    assert type(build(["--model", "HierarchicalSFT", "--data", "TrajectoryDataModule"], run=False).model).__name__ == (
        "HierarchicalSFT"
    )
