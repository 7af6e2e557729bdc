"""Rows of the comparison: which `lit-rft` commands train and play each method, on equal data and exploration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experiment import Step, listed
from talk_place import Place

FLAT = ("glider/{}/sft.yaml", "glider/{}/flat_sft.yaml")
HIERARCHICAL = ("glider/{}/sft.yaml",)
ONCE = {"trainer.max_epochs": 1}  # fewer than SFT has at the scales `small` and `paper`


def untrained(place: Place) -> Iterator[Step]:
    yield from place.play("untrained", None, *FLAT)


def sft(place: Place) -> Iterator[Step]:
    """Behaviour cloning of the experts."""
    yield place.fit("sft", *FLAT, **place.game.train)
    yield from place.play("sft", "sft", *FLAT)


def sft_once(place: Place) -> Iterator[Step]:
    """Behaviour cloning in one epoch."""
    yield place.fit("sft_once", *FLAT, model=ONCE, **place.game.train)
    yield from place.play("sft_once", "sft_once", *FLAT)


def _explored(place: Place) -> Iterator[Step]:
    """The exploration that all offline methods learn from: by the cloned policy."""
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.explore("sft", *FLAT)


def awac(place: Place) -> Iterator[Step]:
    yield from _explored(place)
    yield from _flat_offline(place, "awac", "sft")


def awac_once(place: Place) -> Iterator[Step]:
    """The same after one epoch of SFT, and on what that policy explores."""
    yield place.fit("sft_once", *FLAT, model=ONCE, **place.game.train)
    yield place.explore("sft_once", *FLAT)
    yield from _flat_offline(place, "awac_once", "sft_once")


def _flat_offline(place: Place, row: str, start: str) -> Iterator[Step]:
    configs = ("glider/{}/offline_rl.yaml", "glider/{}/flat_offline_rl.yaml")
    data = {**place.game.train, "medium_files": listed([place.explored(start)])}
    yield place.fit(row, *configs, start=start, **data)
    yield from place.play(row, row, *configs)


def glider_sft(place: Place) -> Iterator[Step]:
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from place.play("glider_sft", "glider_sft", *HIERARCHICAL)


def glider_sft_once(place: Place) -> Iterator[Step]:
    yield place.fit("glider_sft_once", *HIERARCHICAL, model=ONCE, **place.game.train)
    yield from place.play("glider_sft_once", "glider_sft_once", *HIERARCHICAL)


def glider(place: Place) -> Iterator[Step]:
    """Hierarchical SFT, then offline RL, without playing online."""
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from _offline(place, "glider", "glider_sft", start="glider_sft")


def glider_once(place: Place) -> Iterator[Step]:
    """The same after one epoch of SFT, and on what that policy explores."""
    yield place.fit("glider_sft_once", *HIERARCHICAL, model=ONCE, **place.game.train)
    yield from _offline(place, "glider_once", "glider_sft_once", start="glider_sft_once")


def glider_without_sft(place: Place) -> Iterator[Step]:
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from _offline(place, "glider_without_sft", "glider_sft", start=None)


def _offline(place: Place, row: str, explorer: str, start: str | None) -> Iterator[Step]:
    yield place.explore(explorer, *HIERARCHICAL)
    data = {**place.game.train, "medium_files": listed([place.explored(explorer)])}
    yield place.fit(row, "glider/{}/offline_rl.yaml", start=start, **data)
    yield from place.play(row, row, "glider/{}/offline_rl.yaml")


def glider_online(place: Place) -> Iterator[Step]:
    """All three stages; the third one plays the training tasks, beside the explored episodes, against forgetting."""
    yield from glider(place)
    data = {**place.game.online, "train_files": listed([place.explored("glider_sft")])}
    yield place.fit("glider_online", "glider/{}/online.yaml", start="glider", **data)
    yield from place.play("glider_online", "glider_online", "glider/{}/online.yaml")


def react(place: Place) -> Iterator[Step]:
    yield place.examples()
    examples = {"model.init_args.agent.init_args.examples.files": listed([place.examples_file])}
    yield from place.play("react", None, "baselines/{}/react.yaml", **examples)


def reflexion(place: Place) -> Iterator[Step]:
    yield place.examples()
    examples = {"model.init_args.agent.init_args.agent.examples.files": listed([place.examples_file])}
    yield from place.play("reflexion", None, "baselines/{}/reflexion.yaml", **examples)


def swift_sage(place: Place) -> Iterator[Step]:
    """Swift by imitation; Sage is the same policy, with examples."""
    yield place.examples()
    examples = {"model.init_args.agent.init_args.examples.files": listed([place.examples_file])}
    yield place.fit("swift_sage", "baselines/{}/swift_sage.yaml", model=examples, **place.game.train)
    yield from place.play("swift_sage", "swift_sage", "baselines/{}/swift_sage.yaml", **examples)


def nat(place: Place) -> Iterator[Step]:
    yield from _nat(place, "nat")


def nat_meaningless(place: Place) -> Iterator[Step]:
    """The same classes, with markers that say nothing."""
    yield from _nat(place, "nat_meaningless", "baselines/nat_meaningless.yaml")


def _nat(place: Place, row: str, *overlays: str) -> Iterator[Step]:
    yield from _explored(place)
    data = {**place.game.train, "medium_files": listed([place.explored("sft")])}
    yield place.fit(row, "baselines/{}/nat.yaml", *overlays, **data)
    yield from place.play(row, row, "baselines/{}/nat.yaml", *overlays)


def eto(place: Place) -> Iterator[Step]:
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.eto("eto", start="sft")
    yield from place.play("eto", "eto/iteration_3", "baselines/{}/eto.yaml")


def agent_tuning(place: Place) -> Iterator[Step]:
    data = {**place.game.train, "general_files": listed([place.general])}
    yield place.fit("agent_tuning", "baselines/{}/agent_tuning.yaml", **data)
    yield from place.play("agent_tuning", "agent_tuning", "baselines/{}/agent_tuning.yaml")


def ppo(place: Place) -> Iterator[Step]:
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.fit("ppo", "baselines/{}/ppo.yaml", start="sft", **place.game.online)
    yield from place.play("ppo", "ppo", "baselines/{}/ppo.yaml")


def ilql(place: Place) -> Iterator[Step]:
    yield from _explored(place)
    data = {**place.game.train, "medium_files": listed([place.explored("sft")])}
    yield place.fit("ilql", "baselines/{}/ilql.yaml", start="sft", **data)
    yield from place.play("ilql", "ilql", "baselines/{}/ilql.yaml")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        title: its name in the table.
        steps: its commands, in order; those that another row has completed are not run again.
        trials: whether problems are played several times; first, last and best trials are then reported apart.
    """

    title: str
    steps: Callable[[Place], Iterator[Step]]
    trials: bool = False


ROWS = {
    "untrained": Row("pretrained model", untrained),
    "react": Row("ReAct", react),
    "reflexion": Row("Reflexion", reflexion, trials=True),
    "swift_sage": Row("SwiftSage", swift_sage),
    "sft": Row("SFT (behaviour cloning)", sft),
    "sft_once": Row("SFT, one epoch", sft_once),
    "agent_tuning": Row("AgentTuning", agent_tuning),
    "nat": Row("NAT", nat),
    "nat_meaningless": Row("NAT, meaningless markers", nat_meaningless),
    "eto": Row("ETO", eto),
    "ppo": Row("PPO", ppo),
    "ilql": Row("ILQL", ilql),
    "awac": Row("AWAC", awac),
    "awac_once": Row("AWAC after one epoch of SFT", awac_once),
    "glider_sft": Row("GLIDER, SFT only", glider_sft),
    "glider_sft_once": Row("GLIDER, SFT only, one epoch", glider_sft_once),
    "glider_without_sft": Row("GLIDER without SFT", glider_without_sft),
    "glider": Row("GLIDER, SFT + offline RL", glider),
    "glider_once": Row("GLIDER, one epoch of SFT + offline RL", glider_once),
    "glider_online": Row("GLIDER, all stages", glider_online),
}
