"""Measure how good the critics of offline RL are, on the episodes that they learnt from and on held-out ones.

    python benchmarks/critic_calibration.py RUN...    # runs/offline_scienceworld/seed-N/returns; no training
    python benchmarks/critic_calibration.py RUNS/small/scienceworld-seed0/awac    # of talk_table.py: Q as well
    python benchmarks/critic_calibration.py --report  # the tables and the plot of the results so far

A run is a folder of `offline_scienceworld.py`, or of a flat row of `talk_table.py`, with a checkpoint. Measured are
every third of the episodes that SFT has explored, on which it has trained, and the held-out ones that SFT and offline
RL have played greedily, in the comparison the seen ones (one that is the same for both counts once). V of every
decision, Q where the update has one, and the advantages by which it weighs are computed by the code of training, and
compared with the observed discounted return.

The yardstick is a V that knows little: the mean return of like decisions, those of the training episodes with the same
task and number of actions so far (in pairs). Advantages are measured by the probability that they rank a decision of
one kind above another one (AUC; 0.5 by chance): one of a solved episode, of the best quarter, or one that is not wasted
(`offline_weights.py`). Without a critic (V = 0) the advantage is nearly the return, and in one step the reward.

Results are in `benchmarks/results/critic_calibration.json`, the plot is `docs/images/critic_calibration.png`.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from experiment import RESULTS, environment, read_results, save_figure
from offline_pretrained import with_end
from offline_scienceworld import best_quarter
from offline_weights import LAMBDAS, wasted_actions
from torch import Tensor

from lit_rft._files import write_json
from lit_rft.agents import add_outcomes
from lit_rft.callbacks.calibration import rank_correlation
from lit_rft.command_line import build
from lit_rft.datamodules.rendering import within_context
from lit_rft.demo.report import markdown_table
from lit_rft.episodes import Episode, read_episodes
from lit_rft.models.forward import hidden_states
from lit_rft.objectives.gae import generalized_advantages
from lit_rft.stages import IQLUpdate, OfflineHierarchicalRL, TDUpdate
from lit_rft.stages.core.critic_updates import known_returns
from lit_rft.stages.core.level_decisions import decisions_at
from lit_rft.transcripts import collate_padded

FILE, HELD_OUT = RESULTS / "critic_calibration.json", ("sft-0", "returns-0")
PREDICTED = "episodes/predicted.jsonl"
FIGURES = {"rank": "rank correlation", "within": "within tasks", "bias": "V - return", "r2": "R²"}
VALUES, EVERY = ("V", "Q"), 3  # of the training episodes every third is measured
KINDS = {"solved": "solved episode", "best": "best quarter", "useful": "not wasted"}
HORIZONS = {"weighing": "as weighed", "one_step": "one step"}  # of advantages


class Decisions(NamedTuple):
    """The decisions of flat episodes, one episode after another, N of them."""

    keys: list[tuple[str, int]]  # task, and number of actions so far in pairs
    columns: dict[str, Tensor]  # [N]: VALUES, HORIZONS, reward, return; bool: last (of its episode), KINDS


@torch.no_grad()
def read_out(stage: OfflineHierarchicalRL, episodes: Sequence[Episode]) -> Decisions:
    """Compute the critics of a flat stage on episodes; one that the limit of steps has cut has ended."""
    policy, actor_critic, settings = stage.current_policy(), stage.eval().actor_critic, stage.critic_settings
    quarter, keys = {id(episode) for episode in best_quarter(episodes)}, []
    rows: list[dict[str, Tensor]] = []
    for episode, ended in zip(episodes, map(with_end, episodes), strict=True):
        made = add_outcomes(stage.agent.transcripts(ended, policy.chat), ended, policy.chat, stage.agent)
        for transcript in within_context(made, stage.agent.max_length):
            batch = collate_padded([transcript], pad_id=0).to(policy.device)
            with stage.trainer.precision_plugin.forward_context():
                features = actor_critic.features(policy, batch, hidden_states(policy.model, batch))
            decisions, number = decisions_at("flat", 0, batch, features, None), transcript.num_decisions
            updates = stage.critic_update, TDUpdate(td_lambda=0.0)
            terms, step = (update(actor_critic.critics.critic, decisions, settings, number) for update in updates)
            row = {"V": terms.value, "weighing": terms.q - terms.value, "one_step": step.q - step.value}
            if isinstance(stage.critic_update, IQLUpdate):
                row["Q"] = terms.q
            row |= {"reward": decisions.rewards, "return": known_returns(decisions, settings, terms.q)[1]}
            kinds = {"solved": episode.outcome.success, "best": id(episode) in quarter}
            row |= {kind: torch.tensor([is_one] * number) for kind, is_one in kinds.items()}
            first = transcript.first_decision
            row |= {"useful": ~torch.tensor(wasted_actions(episode)[first:]), "last": decisions.terminated}
            rows.append(row)
            keys += [(episode.task, index // 2) for index in range(first, first + number)]
    return Decisions(keys, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def like_decisions(keys: Sequence[tuple[str, int]], training: Sequence[Episode], discount: float) -> Tensor:
    """Return the mean return of the training episodes' decisions with each key [N]; without any, that of its task."""
    returns: defaultdict[Any, list[float]] = defaultdict(list)
    for episode in training:
        following = 0.0
        for index, step in reversed(list(enumerate(episode.steps))):
            following = step.reward + discount * following
            returns[episode.task, index // 2].append(following)
            returns[episode.task].append(following)
    return torch.tensor([statistics.fmean(returns.get(key) or returns[key[0]]) for key in keys])


def calibration(values: Tensor, data: Decisions) -> dict[str, float]:
    """Compare values [N] with the observed returns."""
    returns, errors = data.columns["return"], values - data.columns["return"]
    tasks = [torch.tensor([key[0] == task for key in data.keys]) for task in sorted({task for task, _ in data.keys})]
    within = statistics.fmean(rank_correlation(values[rows], returns[rows]) for rows in tasks)
    r2 = float(1 - errors.square().mean() / returns.var(correction=0))
    figures = {"rank": rank_correlation(values, returns), "within": within, "bias": float(errors.mean()), "r2": r2}
    return {name: round(value, 4) for name, value in figures.items()}


def auc(scores: Tensor, kind: Tensor) -> float:
    """Return the probability that a score of a kind is above another one; equal ones count half."""
    return round(float(torch.sign(scores[kind][:, None] - scores[~kind]).double().mean() / 2 + 0.5), 4)


def measure(data: Decisions, training: Sequence[Episode], discount: float) -> dict[str, Any]:
    """Return the figures of decisions, with the yardstick from the training episodes."""
    columns, like = data.columns, like_decisions(data.keys, training, discount)
    values = {name: columns[name] for name in VALUES if name in columns} | {"like": like}
    areas: dict[str, dict[str, dict[str, float]]] = {}
    for horizon, gae_lambda in zip(HORIZONS, LAMBDAS, strict=True):
        scores = {"V": columns[horizon]}
        for name, baseline in (("like", like), ("none", torch.zeros_like(like))):
            scores[name] = generalized_advantages(
                columns["reward"], baseline, columns["last"], discount=discount, gae_lambda=gae_lambda
            ).advantages
        areas[horizon] = {k: {name: auc(score, columns[k]) for name, score in scores.items()} for k in KINDS}
    bins = columns["V"].argsort().tensor_split(10)
    return {
        "decisions": len(like),
        "values": {name: calibration(value, data) for name, value in values.items()},
        "auc": areas,
        "bins": [[round(float(columns[name][part].mean()), 4) for name in ("V", "return")] for part in bins],
    }


def episodes_of(run: Path) -> dict[str, list[Episode]]:
    """Return all training episodes of a run, those that are measured, and the held-out ones."""
    explored, names = run.parent / "medium" / "all.jsonl", HELD_OUT
    if not explored.parent.is_dir():  # of the comparison
        explored, names = run.parent / "sft" / "explored" / PREDICTED, ("sft/seen", f"{run.name}/seen")
    played = [episode for name in names for episode in read_episodes(run.parent / "played" / name / PREDICTED)]
    held_out = {(episode.id, *(step.action for step in episode.steps)): episode for episode in played}
    known = read_episodes(explored)
    return {"all": known, "training": known[::EVERY], "held-out": list(held_out.values())}


def measure_run(run: Path) -> dict[str, Any]:
    episodes = episodes_of(run)
    start = ["--model.init_args.policy.start_from", str(run / "checkpoints" / "last.ckpt")]
    command = build(["-c", str(run / "config.yaml"), *start], run=False)
    stage = command.model
    stage.trainer = command.trainer
    stage.configure_model()
    discount, known = stage.critic_settings.discount, episodes["all"]
    return {name: measure(read_out(stage, episodes[name]), known, discount) for name in ("training", "held-out")}


def tables(runs: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    """Yield the rows of two tables: of values and of advantages, in each cell those of the critic and the yardstick."""
    sets = {f"{run}, {name}": figures[name] for run, figures in runs.items() for name in ("training", "held-out")}
    yield [["V (Q) / like decisions", "decisions", *FIGURES.values()]] + [
        [label, str(s["decisions"]), *(" / ".join(f"{v[f]:.2f}" for v in s["values"].values()) for f in FIGURES)]
        for label, s in sets.items()
    ]  # fmt: skip
    heads = [f"{horizon}: {kind}" for horizon in HORIZONS.values() for kind in KINDS.values()]
    yield [["V / like decisions / none", *heads]] + [
        [label, *(" / ".join(f"{v:.2f}" for v in s["auc"][h][k].values()) for h in HORIZONS for k in KINDS)]
        for label, s in sets.items()
    ]  # fmt: skip


def plot(runs: Mapping[str, Any]) -> None:
    """Plot the mean return against V."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("training", "held-out"), strict=True):
        for run, figures in runs.items():
            axes.plot(*zip(*figures[name]["bins"], strict=True), ".-", label=run)
        axes.axline((0, 0), slope=1, ls="--", color="grey", lw=1)
        axes.set(title=f"{name} episodes", xlabel="V, ten bins", ylabel="mean return")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save_figure(figure, "critic_calibration.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="*", help="folders of offline RL: RUNS/seed-N/returns, or a flat row")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    options = parser.parse_args(arguments)
    if options.report == bool(options.runs):
        parser.error("expected folders of runs, or --report")
    results = read_results(FILE)
    for run in options.runs:
        name = f"{run.resolve().parent.name.replace('-', ' ')}, {run.name}"
        results = {"runs": dict(sorted((results.get("runs", {}) | {name: measure_run(run)}).items())), **environment()}
        write_json(FILE, results)
    print("\n\n".join(map(markdown_table, tables(results["runs"]))))
    plot(results["runs"])


if __name__ == "__main__":
    main()
