"""PPO: chains of tokens against slow sums, values that become right, rewards that rise, exact resume."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from recorder import Recorder

from lit_rft.agents.records import learnable_transcripts
from lit_rft.batches import Prompt
from lit_rft.datamodules import OnlineDataModule, PromptLoader
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import MixedPolicyLoss, Rollout
from lit_rft.stages import (
    PPO,
    ActingSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicySettings,
    PPOEpisodes,
    PPOSettings,
)
from lit_rft.testing.tiny_stage import ADAPTERS, FLAT_PLAYER, PLAYER, differs, fit, speak_out, trained
from lit_rft.transcripts import COMPLETION, DecisionOutcome, PromptFormat, Transcript

FAST = PPOSettings(value_learning_rate=1e-2)


def vowels(completions: Any, rows: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def loader(model: Path) -> PromptLoader:
    form = PromptFormat(load_tokenizer(str(model)))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", ()) for n in range(2)]
    prompts = [Prompt(problem, form.prompt_ids(problem.prompt), [], [], []) for problem in problems]
    return PromptLoader(prompts, batch_size=2)


def make_ppo(model: Path, ppo: PPOSettings = FAST, **options: Any) -> PPO:
    L.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {
        "optimizer": OptimizerSettings(learning_rate=1e-2), "reward": vowels, "group_size": 8,
        "sampling": SamplingSettings(max_new_tokens=8, temperature=1.0), **options,
    }  # fmt: skip
    return PPO(PolicySettings(str(model), settings.pop("lora", None)), ppo=ppo, **settings)


def after(model: Path, *, steps: int = 2, **options: Any) -> dict[str, torch.Tensor]:
    stage = make_ppo(model, **options)
    fit(stage, loader(model), steps)
    return trained(stage)


class CountingLoss(MixedPolicyLoss):
    """Keeps the numbers by which a loss is divided."""

    seen: list[float] = []  # noqa: RUF012

    def __call__(self, log_probs: torch.Tensor, rollouts: Any, *, normalizer: Any) -> Any:
        self.seen.append(float(normalizer.rollouts))
        return super().__call__(log_probs, rollouts, normalizer=normalizer)


def test_losses_are_divided_by_completions_and_not_by_problems(tiny_model_folder: Path) -> None:
    CountingLoss.seen.clear()
    fit(make_ppo(tiny_model_folder, loss=CountingLoss(), group_size=4), loader(tiny_model_folder), 1)
    assert CountingLoss.seen and set(CountingLoss.seen) == {8.0 / FAST.mini_batches}


# --- chains ----------------------------------------------------------------------------------------------------------


def conversation(observation_tokens: int, name: str = "e") -> Transcript:
    """Three actions of 2, 1 and 3 tokens and their ends, after observations of a given length."""
    transcript = Transcript(COMPLETION, 2, name)
    for action in ([11, 12], [13], [14, 15, 16]):
        transcript.append_prompt([30] * observation_tokens)
        transcript.append_utterance([*action, 2])
    outcomes = [(0.5, 1, False), (0.0, 1, False), (1.0, 1, True)]
    transcript.outcomes = [DecisionOutcome(*outcome) for outcome in outcomes]
    return transcript


def prepared(model: Path, transcripts: list[Transcript], settings: PPOSettings, value: float = 0.0) -> Any:
    stage = make_ppo(model, dataclasses.replace(settings, whiten=False))
    stage.configure_model()
    with torch.no_grad():
        stage.value_heads.heads[0][-1].bias.fill_(value)
    stage.update.prepare(stage.current_policy(), [Rollout([one], "", 0, False, True) for one in transcripts])
    return [stage.update.before(transcript) for transcript in transcripts]


def test_observations_take_no_part_in_the_recursion(tiny_model_folder: Path) -> None:
    """With a constant value, advantages depend on the actions' tokens and rewards alone."""
    settings = PPOSettings(discount=0.9, gae_lambda=0.8)
    short, long = prepared(tiny_model_folder, [conversation(3), conversation(40)], settings, value=0.3)
    assert len(short.advantages) == 9
    torch.testing.assert_close(short.advantages, long.advantages)


@pytest.mark.parametrize("discount", [0.9, 0.5])
@pytest.mark.parametrize("utterance_level", [False, True])
def test_advantages_equal_a_slow_loop(discount: float, utterance_level: bool, tiny_model_folder: Path) -> None:
    settings = PPOSettings(discount=discount, gae_lambda=0.8, utterance_level=utterance_level)
    (found,) = prepared(tiny_model_folder, [conversation(3)], settings, value=0.3)
    ends, rewards = [2, 4, 8], {2: 0.5, 4: 0.0, 8: 1.0}
    if utterance_level:
        ends, rewards, number = [0, 1, 2], {0: 0.5, 1: 0.0, 2: 1.0}, 3
    else:
        number = 9
    expected, following = [0.0] * number, 0.0
    for k in reversed(range(number)):
        factor = discount if k in ends else 1.0
        next_value = 0.0 if k == number - 1 else 0.3
        expected[k] = following = rewards.get(k, 0.0) + factor * next_value - 0.3 + factor * 0.8 * following
    if utterance_level:
        expected = [expected[0]] * 3 + [expected[1]] * 2 + [expected[2]] * 4
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.returns.tolist() == pytest.approx([a + 0.3 for a in expected], abs=1e-6)


def test_what_was_cut_bootstraps_and_what_ended_does_not(tiny_model_folder: Path) -> None:
    def cut(terminated: bool) -> Transcript:
        transcript = conversation(3)
        transcript.outcomes[-1] = DecisionOutcome(1.0, 1, terminated)
        if not terminated:
            transcript.append_prompt([30] * 3)
        return transcript

    settings = PPOSettings(discount=0.9, gae_lambda=0.8)
    ended, truncated = prepared(tiny_model_folder, [cut(True), cut(False)], settings, value=0.3)
    assert float(truncated.returns[-1] - ended.returns[-1]) == pytest.approx(0.9 * 0.3, abs=1e-6)


def test_whitening_is_over_the_batch(tiny_model_folder: Path) -> None:
    stage = make_ppo(tiny_model_folder)
    stage.configure_model()
    transcripts = [conversation(3), conversation(5)]
    stage.update.prepare(stage.current_policy(), [Rollout([one], "", 0, False, True) for one in transcripts])
    joined = torch.cat([stage.update.before(transcript).advantages for transcript in transcripts])
    assert float(joined.mean()) == pytest.approx(0, abs=1e-5)
    assert float(joined.std(unbiased=False)) == pytest.approx(1, abs=1e-4)


def test_the_kl_is_a_mean_over_tokens(tiny_model_folder: Path) -> None:
    stage: Any = make_ppo(tiny_model_folder, PPOSettings(kl_coef=0.1), lora=ADAPTERS)
    speak_out(stage)
    policy, measured = stage.current_policy(), []
    for names in ("a", "ab"):
        rollouts = [Rollout([conversation(3, name)], "", 0, False, True) for name in names]
        metrics = stage.update.prepare(policy, rollouts)
        measured.append(float(metrics["kl"]))
    assert measured[0] == pytest.approx(measured[1], rel=1e-4) and measured[0] > 1e-6


def test_the_kl_to_the_reference_is_a_cost_of_each_token(tiny_model_folder: Path) -> None:
    """Q of a token is then what is still earned, less the log ratios from there on (discount and lambda 1)."""

    def estimate(kl_coef: float, adapters_act: bool) -> Any:
        settings = PPOSettings(discount=1.0, gae_lambda=1.0, kl_coef=kl_coef, whiten=False)
        stage: Any = make_ppo(tiny_model_folder, settings, lora=ADAPTERS)
        stage.configure_model()
        if adapters_act:
            speak_out(stage)
        transcript = conversation(3)
        stage.update.prepare(stage.current_policy(), [Rollout([transcript], "", 0, False, True)])
        return stage.update.before(transcript)

    plain, penalised, reference = estimate(0.0, True), estimate(0.5, True), estimate(0.0, False)
    ratios = plain.log_probs - reference.log_probs
    assert ratios.abs().max() > 1e-3
    costs = 0.5 * ratios.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(penalised.returns, plain.returns - costs, rtol=1e-4, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_reward_rises_and_the_values_follow(tiny_model_folder: Path) -> None:
    recorder = Recorder()
    settings = PPOSettings(value_learning_rate=1e-2, epochs=2)
    fit(make_ppo(tiny_model_folder, settings), loader(tiny_model_folder), 40, callbacks=[recorder])
    rewards = [logged["train/reward"] for logged in recorder.logged]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    assert recorder.logged[0]["train/value_mean"] == 0 and recorder.logged[0]["train/explained_variance"] == 0
    assert all(abs(logged["train/value_mean"] - logged["train/return_mean"]) < 0.1 for logged in recorder.logged[-5:])
    assert max(logged["train/explained_variance"] for logged in recorder.logged) > 0.01


def test_micro_batches_change_nothing(tiny_model_folder: Path) -> None:
    whole = after(tiny_model_folder)
    for batching in (BatchingSettings(1), BatchingSettings(60, packing=True)):
        assert not differs(whole, after(tiny_model_folder, batching=batching), rtol=1e-3, atol=1e-5)


KNOBS = PPOSettings(value_learning_rate=1e-2, epochs=2)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, Any]:
    return after(tiny_model_folder, ppo=KNOBS, lora=ADAPTERS, steps=4)


@pytest.mark.parametrize(
    "knob",
    [
        {"gae_lambda": 0.5}, {"utterance_level": True}, {"whiten": False}, {"kl_coef": 0.5},
        {"value_coef": 0.1}, {"value_clip": 1e-4}, {"value_learning_rate": 1e-3}, {"mini_batches": 2},
    ],
    ids=lambda knob: next(iter(knob)),
)  # fmt: skip
def test_every_knob_changes_the_result(knob: dict[str, Any], base: dict[str, Any], tiny_model_folder: Path) -> None:
    turned = after(tiny_model_folder, ppo=dataclasses.replace(KNOBS, **knob), lora=ADAPTERS, steps=4)
    assert differs(base, turned, rtol=1e-5, atol=1e-7)


def test_resume_equals_uninterrupted(tiny_model_folder: Path, tmp_path: Path) -> None:
    whole = make_ppo(tiny_model_folder)
    fit(whole, loader(tiny_model_folder), 4)
    fit(make_ppo(tiny_model_folder), loader(tiny_model_folder), 2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_ppo(tiny_model_folder)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=4, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **settings)
    trainer.fit(resumed, loader(tiny_model_folder), ckpt_path=str(tmp_path / "half.ckpt"))
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(resumed)[name]), name


def play(
    agent: Any, model: Path, folder: Path, steps: int, ppo: PPOSettings, **options: Any
) -> tuple[PPOEpisodes, Any]:
    L.seed_everything(0, verbose=False)
    stage = PPOEpisodes(
        PolicySettings(str(model), **{"lora": None, **options}), OptimizerSettings(learning_rate=1e-2), ppo,
        SamplingSettings(6, 1.0),
        ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True)), agent,
    )  # fmt: skip
    suite = GymSuite("plugins.vowels_env.Vowels", step_limit=2, seeds={"train": 16})
    data = OnlineDataModule(model=str(model), data_dir=str(folder), suite=suite, rounds=steps, episodes_per_round=16)
    recorder = Recorder()
    fit(stage, data, steps * stage.steps_per_batch, callbacks=[recorder])
    return stage, recorder.logged


def test_the_score_of_episodes_rises(tiny_model_folder: Path, tmp_path: Path) -> None:
    settings = PPOSettings(epochs=2, value_learning_rate=1e-2)
    _, logged = play(FLAT_PLAYER, tiny_model_folder, tmp_path, 24, settings)
    scores = [metrics["train/score"] for metrics in logged]
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 8, scores
    assert 0 < logged[-1]["train/clip_fraction"] < 1


def test_each_level_of_a_hierarchy_is_a_chain_with_values_of_its_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    settings = PPOSettings(kl_coef=0.1, value_learning_rate=1e-2)
    stage, logged = play(PLAYER, tiny_model_folder, tmp_path, 2, settings, lora=ADAPTERS)
    assert {t.level for rollout in stage.samples for t in rollout.transcripts} == {"high", "low"}
    biases = [float(head[-1].bias.detach()) for head in stage.value_heads.heads]
    assert len(set(biases)) == 2 and 0.0 not in biases
    assert logged[0]["train/kl"] == 0 and logged[1]["train/kl"] > 0
    earned = sum(step.reward for rollout in stage.samples for step in rollout.episode.steps)  # type: ignore[union-attr]
    high = [
        learnable_transcripts(list(rollout.transcripts), rollout.episode, stage.chat, stage.agent)[0]
        for rollout in stage.samples
    ]
    assert all(transcript.level == "high" for transcript in high)
    assert sum(o.reward for transcript in high for o in transcript.outcomes) == pytest.approx(earned)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"discount": 1.1}, r"ppo.discount must be in \[0, 1\], got 1.1"), ({"gae_lambda": -0.1}, "ppo.gae_lambda"),
        ({"kl_coef": -1.0}, "ppo.kl_coef must be >= 0"), ({"epochs": 0}, "ppo.epochs must be >= 1, got 0"),
        ({"value_clip": 0.0}, "value_clip must be > 0"), ({"value_learning_rate": 0.0}, "must be > 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOSettings(**setting)


def test_an_importance_cap_that_would_have_no_effect_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="PPO keeps no log-probabilities of the sampler"):
        make_ppo(tiny_model_folder, loss=MixedPolicyLoss(importance_cap=2.0))
