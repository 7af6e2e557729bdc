"""The calibration of critics: values of the training step itself, figures by hand and by slow loops, the command."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_modules import load
from command import flags, main

from lit_rft.agents import add_outcomes
from lit_rft.datamodules import StepLoader
from lit_rft.episodes import Episode, write_episodes
from lit_rft.models import load_tokenizer
from lit_rft.stages import BatchingSettings, CriticSettings, IQLUpdate, TDUpdate
from lit_rft.testing import make_episode
from lit_rft.testing.tiny_stage import FLAT, fit, make_offline
from lit_rft.transcripts import ChatFormat


@pytest.fixture(scope="module")
def bench() -> Any:
    return load("critic_calibration")


def make_episodes(number: int = 5) -> list[Episode]:
    """Make episodes of different lengths, of two tasks; every second one is cut by the limit of steps."""
    episodes = [make_episode(seed, 2 + seed, task=f"task-{seed % 2}", subgoals=False) for seed in range(number)]
    for episode in episodes[::2]:
        episode.outcome.success = episode.outcome.terminated = False
        episode.outcome.truncated = True
        episode.steps[1].action, episode.steps[1].reward = episode.steps[0].action, -0.5
    return episodes


@pytest.mark.parametrize("update", [TDUpdate(td_lambda=0.95), IQLUpdate()])
def test_values_are_those_of_a_training_step(bench: Any, tiny_model_folder: Path, update: Any) -> None:
    """Of a step that trains on all episodes at once, packed: before its optimiser step."""
    episodes, seen = make_episodes(), {}

    def recorded(critic: Any, decisions: Any, settings: Any, normalizer: float) -> Any:
        terms = update(critic, decisions, settings, normalizer)
        for owner in decisions.owner.unique():
            rows = decisions.owner == owner
            seen[int(rows.sum())] = terms.value[rows], terms.q[rows]
        return terms

    critic = CriticSettings(learning_rate=1e-2, features="adapted", discount=0.97)
    batching = BatchingSettings(4000, packing=True)
    stage = make_offline(tiny_model_folder, agent=FLAT, critic=critic, critic_update=recorded, batching=batching)
    chat, ends = ChatFormat(load_tokenizer(str(tiny_model_folder))), [bench.with_end(episode) for episode in episodes]
    transcripts = [add_outcomes(FLAT.transcripts(episode, chat), episode, chat, FLAT) for episode in ends]
    loader = StepLoader(transcripts, batch_size=len(episodes))
    fit(stage, loader, 3)
    stage.critic_update = update
    data = bench.read_out(stage, episodes)
    stage.critic_update = recorded
    fit(stage, loader, 1)
    values, q = (torch.cat([seen[len(episode.steps)][k] for episode in episodes]) for k in (0, 1))
    assert values.std() > 1e-3 and (values - q).std() > 1e-3  # neither equal nor untrained
    torch.testing.assert_close(data.columns["V"], values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.columns["weighing"], q - values, rtol=1e-4, atol=1e-5)
    assert ("Q" in data.columns) == isinstance(update, IQLUpdate)


def test_columns_of_decisions(bench: Any, tiny_model_folder: Path) -> None:
    # the target critic is the online one: the one-step error follows from V
    critic = CriticSettings(learning_rate=1e-2, features="adapted", discount=0.97, polyak_rate=1.0)
    stage = make_offline(tiny_model_folder, agent=FLAT, critic=critic, critic_update=TDUpdate(td_lambda=0.95))
    episodes = make_episodes()
    chat = ChatFormat(load_tokenizer(str(tiny_model_folder)))
    transcripts = [add_outcomes(FLAT.transcripts(episode, chat), episode, chat, FLAT) for episode in episodes]
    fit(stage, StepLoader(transcripts, batch_size=2), 3)
    keys, columns = bench.read_out(stage, episodes)
    expected: dict[str, list[float]] = {"return": [], "one_step": [], "weighing": []}
    for episode in episodes:  # nothing follows the last decision, of a cut episode either
        start, rewards = len(expected["return"]), [s.reward for s in episode.steps]
        values = [*columns["V"][start : start + len(rewards)].tolist(), 0.0]
        errors = [r + 0.97 * values[k + 1] - values[k] for k, r in enumerate(rewards)]
        for k in range(len(rewards)):
            expected["return"].append(sum(0.97**j * r for j, r in enumerate(rewards[k:])))
            expected["one_step"].append(errors[k])
            expected["weighing"].append(sum((0.95 * 0.97) ** j * error for j, error in enumerate(errors[k:])))
    for name, numbers in expected.items():
        torch.testing.assert_close(columns[name], torch.tensor(numbers))
    assert columns["last"].nonzero().flatten().tolist() == [1, 4, 8, 13, 19]
    assert keys[:5] == [("task-0", 0), ("task-0", 0), ("task-1", 0), ("task-1", 0), ("task-1", 1)]
    assert columns["useful"][:2].tolist() == [True, False]
    assert columns["solved"].tolist() == [n % 2 == 1 for n, episode in enumerate(episodes) for _ in episode.steps]


def made(bench: Any, keys: list[tuple[str, int]], returns: list[float], **columns: Any) -> Any:
    return bench.Decisions(keys, {"return": torch.tensor(returns)} | {k: torch.tensor(v) for k, v in columns.items()})


def test_the_yardstick_is_the_mean_return_of_like_training_decisions(bench: Any) -> None:
    episodes = [make_episode(seed, length, task="a", subgoals=False) for seed, length in enumerate((3, 2))]
    for episode, rewards in zip(episodes, ([0.0, 1.0, 2.0], [0.0, 0.5]), strict=True):
        for step, reward in zip(episode.steps, rewards, strict=True):
            step.reward = reward
    g = 0.97
    first = [g + 2 * g * g, 1 + 2 * g, 0.5 * g, 0.5]
    expected = [sum(first) / 4, 2.0, (sum(first) + 2) / 5]
    values = bench.like_decisions([("a", 0), ("a", 1), ("a", 2)], episodes, g)
    torch.testing.assert_close(values, torch.tensor(expected))


def test_figures_by_hand(bench: Any) -> None:
    data = made(bench, [("a", 0), ("a", 0), ("b", 0), ("b", 0)], [0.0, 1.0, 2.0, 3.0])
    figures = bench.calibration(torch.tensor([0.0, 2.0, 2.0, 1.0]), data)
    # ranks 1, 3.5, 3.5, 2 and 1, 2, 3, 4; squared errors 0, 1, 0, 4 and a variance of 1.25
    assert figures == {"rank": 0.3162, "within": 0.0, "bias": -0.25, "r2": 0.0}


def test_auc_is_that_of_a_slow_loop(bench: Any) -> None:
    scores = torch.tensor([0.3, -1.0, 0.3, 2.0, 0.0, 0.3])
    kind = torch.tensor([True, False, False, True, False, True])
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[kind].tolist(), scores[~kind].tolist())]
    assert bench.auc(scores, kind) == pytest.approx(sum(pairs) / 9, abs=1e-4)


def test_advantages_are_ranked_with_v_with_the_yardstick_and_with_none(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every AUC is that of a slow loop over hand-made decisions, three in each of 20 episodes."""
    torch.manual_seed(0)
    number, g = 60, 0.97
    columns = {name: torch.randn(number) for name in ("V", "weighing", "one_step", "reward", "return")}
    columns |= {kind: torch.rand(number) > 0.6 for kind in bench.KINDS}
    columns["last"] = torch.arange(number) % 3 == 2
    like = torch.randn(number)
    monkeypatch.setattr(bench, "like_decisions", lambda keys, training, discount: like)
    figures = bench.measure(bench.Decisions([("a", 0)] * number, columns), [], g)

    def advantages(baseline: list[float], decay: float) -> torch.Tensor:
        result, following = [0.0] * number, 0.0
        for k in reversed(range(number)):
            ends = bool(columns["last"][k])
            error = float(columns["reward"][k]) + (0.0 if ends else g * baseline[k + 1]) - baseline[k]
            following = result[k] = error + (0.0 if ends else g * decay * following)
        return torch.tensor(result)

    for horizon, decay in (("weighing", 0.95), ("one_step", 0.0)):
        scores = {
            "V": columns[horizon],
            "like": advantages(like.tolist(), decay),
            "none": advantages([0.0] * 60, decay),
        }
        for kind in bench.KINDS:
            expected = {name: bench.auc(score, columns[kind]) for name, score in scores.items()}
            assert figures["auc"][horizon][kind] == pytest.approx(expected, abs=2e-3)
    values = [value for value, _ in figures["bins"]]
    assert values == sorted(values) and len(set(values)) == 10


def test_episodes_of_the_comparison_are_found(bench: Any, tmp_path: Path) -> None:
    episodes, run = make_episodes(7), tmp_path / "awac"
    write_episodes(tmp_path / "sft" / "explored" / "episodes" / "predicted.jsonl", episodes)
    for row, played in (("sft", episodes[:3]), ("awac", episodes[2:5])):
        write_episodes(tmp_path / "played" / row / "seen" / "episodes" / "predicted.jsonl", played)
    found = {name: [episode.id for episode in group] for name, group in bench.episodes_of(run).items()}
    ids = [episode.id for episode in episodes]
    assert found == {"all": ids, "training": ids[::3], "held-out": ids[:5]}


def test_command(
    bench: Any,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a run as the benchmark makes it, but on a tiny model."""
    images: list[Any] = []
    monkeypatch.setattr(bench, "EVERY", 1)
    monkeypatch.setattr(bench, "FILE", tmp_path / "calibration.json")
    monkeypatch.setattr(bench, "save_figure", lambda figure, name: images.append((name, figure)))
    episodes, run = make_episodes(), tmp_path / "seed-4" / "returns"
    write_episodes(run.parent / "medium" / "all.jsonl", list(map(bench.with_end, episodes)))
    for name, played in (("sft-0", episodes[:4]), ("returns-0", episodes[2:])):
        write_episodes(run.parent / "played" / name / "episodes" / "predicted.jsonl", played)
    keys = {
        "model.init_args.policy.model": tiny_model_folder,
        "model.init_args.policy.start_from": "null",
        "model.init_args.critic": json.dumps({"features": "adapted", "discount": 0.97}),
        "model.init_args.critic_update": '{"class_path": "lit_rft.TDUpdate", "init_args": {"td_lambda": 0.95}}',
        "data.init_args.train_files": f"[{run.parent / 'medium' / 'all.jsonl'}]",
        "data.init_args.medium_files": "null",
        "trainer.default_root_dir": run,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.accelerator": "cpu",
    }
    configs = ("glider/scienceworld/offline_rl.yaml", "glider/scienceworld/flat_offline_rl.yaml")
    main(["fit", *(part for config in configs for part in ("-c", config)), *flags(**keys)])
    bench.main([str(run)])
    assert "| seed 4, returns, held-out | 20 |" in capsys.readouterr().out  # two of seven are the same
    results = json.loads((tmp_path / "calibration.json").read_text())["runs"]["seed 4, returns"]
    figures = results["training"]
    assert figures["decisions"] == 20 and figures["values"].keys() == {"V", "like"}
    assert figures["values"]["like"]["bias"] == 0  # of the mean return of all of them
    assert figures["auc"]["weighing"]["solved"].keys() == {"V", "like", "none"} and len(figures["bins"]) == 10
    bench.main(["--report"])
    assert "| seed 4, returns, training | 20 |" in capsys.readouterr().out
    assert [name for name, _ in images] == ["critic_calibration.png"] * 2
    for arguments in ([], [str(run), "--report"]):
        with pytest.raises(SystemExit):
            bench.main(arguments)
