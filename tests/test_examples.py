"""The scripts in examples/, on the tiny model: they run, and learn."""

import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from grpo_stage import make_grpo, make_prompts

from lit_rft.callbacks import RolloutFiles
from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.datamodules import PromptLoader
from lit_rft.episodes import read_episodes
from lit_rft.error_messages import UsageError
from lit_rft.models import load_tokenizer
from lit_rft.rollouts import Rollout
from lit_rft.stages import ObjectiveSettings
from lit_rft.stages.core.loss_needs import check_group_loss
from lit_rft.transcripts import ChatFormat

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker threads import the environment by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


def load(name: str) -> Any:
    return importlib.import_module(name).main


def mean_reward(rollouts: list[Rollout]) -> float:
    return sum(rollout.reward for rollout in rollouts) / len(rollouts)


def test_every_example_is_short_and_tested() -> None:
    source = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in source, path.name
        assert len(path.read_text().splitlines()) <= 65, path.name


def test_an_own_environment(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rewards = load("own_environment")(str(tiny_model_folder))
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3


@pytest.mark.slow
def test_an_own_environment_with_a_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "4"]
    load("own_hierarchy")("run", 24, *few)
    episodes = read_episodes("run/episodes.jsonl")
    goals = {subgoal.goal for episode in episodes for subgoal in episode.subgoals}
    assert {"open lock 0", "open lock 1", "open lock 2"} <= goals
    for stage in ("sft", "offline_rl", "online"):
        assert (tmp_path / "run" / stage / "checkpoints" / "last.ckpt").is_file()


def test_an_own_agent(tiny_model_folder: Path) -> None:
    main = load("own_agent")
    before, after = main(str(tiny_model_folder), steps=1), main(str(tiny_model_folder))
    assert mean_reward(after) > mean_reward(before) + 0.2
    chat = ChatFormat(load_tokenizer(str(tiny_model_folder)))
    for rollout in before:  # a stored episode has the token ids of its play
        (transcript,) = rollout.agent.transcripts(rollout.episode, chat)
        assert transcript.input_ids == rollout.transcripts[0].input_ids
        assert transcript.utterance_starts == rollout.transcripts[0].utterance_starts
        assert transcript.allowed == rollout.transcripts[0].allowed


def test_an_own_agent_in_a_config(tiny_model_folder: Path) -> None:
    agent = ["--model.init_args.agent", "own_agent.Menu", "--model.init_args.agent.actions", "[look, wait]"]
    model = ["--model.init_args.policy.model", str(tiny_model_folder)]
    cli = build([*resolve_configs(["-c", "grpo/text_env.yaml"]), *agent, *model], run=False)
    assert cli.model.agent == importlib.import_module("own_agent").Menu(("look", "wait"), max_length=1024)


def test_an_own_agent_without_annotations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (EXAMPLES / "own_agent.py").read_text().replace("level: str, observation: str", "level, observation")
    (tmp_path / "bare_agent.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    agent = ["--model.init_args.agent", "bare_agent.Menu"]
    with pytest.raises(UsageError, match=r"agent: .* protocol Agent: it needs all methods .* the same .* annotations"):
        build([*resolve_configs(["-c", "grpo/text_env.yaml"]), *agent], run=False)


def test_an_own_stage_in_the_config_of_its_page(tiny_model_folder: Path, tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs/howto/stage.md").read_text()
    (text,) = re.findall(r"^    base: .*?\n\n", page, re.S | re.M)
    config = tmp_path / "mine.yaml"
    config.write_text(textwrap.dedent(text).replace("my_stages.", "own_stage.").replace("my_rewards.", "own_reward."))
    model = ["--model.init_args.policy.model", str(tiny_model_folder)]
    cli = build([*resolve_configs(["-c", str(config)]), *model], run=False)
    assert cli.model.source.sampling.max_new_tokens == 64 and cli.model.source.group_size == 8


def test_an_own_stage(tiny_model_folder: Path) -> None:
    main = load("own_stage")
    assert main(str(tiny_model_folder)) > main(str(tiny_model_folder), steps=1) + 2


def test_an_own_reward(tiny_model_folder: Path, tmp_path: Path) -> None:
    samples = load("own_reward")(str(tiny_model_folder), str(tmp_path))
    assert len(samples) == 32
    for rollout in samples:
        assert set(rollout.reward_parts) == {"right", "short"}
        assert rollout.reward == pytest.approx(rollout.reward_parts["right"] + rollout.reward_parts["short"] / 2)


def test_an_own_loss(tiny_model_folder: Path) -> None:
    metrics = load("own_loss")(str(tiny_model_folder))
    assert metrics["train/masked"] > 0 and metrics["train/grad_norm"] > 0


def test_an_own_loss_without_a_term_for_traces_refuses_them() -> None:
    loss = importlib.import_module("own_loss").MaskedRatio()
    with pytest.raises(ValueError, match="MaskedRatio has no term for traces: set objective"):
        check_group_loss(loss, ObjectiveSettings(traces_per_group=1))
    check_group_loss(loss, ObjectiveSettings())


def test_own_module(tiny_model_folder: Path) -> None:
    main = load("own_module")
    assert main(str(tiny_model_folder), steps=10) < main(str(tiny_model_folder), steps=1) - 1


def test_reading_rollouts(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, callbacks=[RolloutFiles(share=1.0)], default_root_dir=tmp_path,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    stage = make_grpo(tiny_model_folder)
    trainer.fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2))
    rewards = load("read_rollouts")(str(tmp_path))
    assert list(rewards) == [0, 1]
    assert rewards[1] == [rollout.reward for rollout in stage.samples if not rollout.off_policy]
    assert "best of the last group, p" in capsys.readouterr().out


def test_reading_a_run_of_which_no_group_is_kept(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "train.jsonl").write_text('{"rollouts":1,"share":0.25}\n')
    with pytest.raises(SystemExit, match=r"no group of training is kept; .* set share: 1\.0"):
        load("read_rollouts")(str(tmp_path))
