"""Pairs of a better and a worse trajectory: of episodes that a policy explored, against an expert's."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rft._files import write_json
from lit_rft.batches import HostBatch
from lit_rft.datamodules.around import AroundTrajectories
from lit_rft.datamodules.digests import digest_of, transcript_parts
from lit_rft.datamodules.loaders import EpochLoader
from lit_rft.datamodules.rendering import log_sizes, within_context
from lit_rft.episodes import Episode, PairReport, pair_with_experts
from lit_rft.transcripts import ChatFormat, Transcript

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferencePair:
    """Two trajectories as token ids.

    Args:
        id: names the pair.
        chosen: conversations of the better one, >= 1.
        rejected: of the worse one.
    """

    id: str
    chosen: list[Transcript]
    rejected: list[Transcript]


class PreferenceBatch(HostBatch):
    """The pairs of one optimiser step, this process's share.

    Args:
        pairs: may be empty on a process that got nothing.
        num_pairs: over all processes.
    """

    def __init__(self, pairs: list[PreferencePair], num_pairs: int) -> None:
        self.pairs, self.num_pairs = pairs, num_pairs

    @property
    def num_tokens(self) -> int:
        """This process's tokens."""
        return sum(len(transcript) for pair in self.pairs for transcript in [*pair.chosen, *pair.rejected])


class PairLoader(EpochLoader[PreferencePair, PreferenceBatch]):
    """Pairs in batches, shared among processes.

    Args:
        pairs: all of them.
        batch_size: pairs per optimiser step, over all processes.
        shuffle: another order in each epoch; else their own, from the beginning, for evaluation.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(pairs), batch_size, seed, rank, world_size, shuffle=shuffle)
        self.pairs = list(pairs)

    def order(self) -> list[PreferencePair]:
        return self.shuffled(self.pairs)

    def make_batch(self, items: list[PreferencePair]) -> PreferenceBatch:
        return PreferenceBatch(items[self.rank :: self.world_size], len(items))

    def shape(self) -> dict[str, int | str]:
        sizes = {"pairs": len(self.pairs), "batch_size": self.batch_size, "seed": self.seed}
        return {**sizes, "digest": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        sides = (side for pair in self.pairs for side in (pair.chosen, pair.rejected))
        return digest_of(part for side in sides for t in side for part in ["side", *transcript_parts(t)])


class EpisodePairDataModule(AroundTrajectories):
    """Pairs of explored and expert episodes of the same problem for `TrajectoryDPO` (ETO, arXiv 2403.02502).

    `train_files`, or collected expert episodes, are the experts. Evaluation plays episodes, as in
    `TrajectoryDataModule`; `batch_size` is the number of pairs per optimiser step. `pairs.json` in the run's folder has
    the numbers of pairs, of those left out for their length, and of explored episodes that won, tied and lost.

    Args:
        explored_files: files or folders of episodes that the policy to improve played on training problems
            (`lit-rft predict` writes them).
        margin: scores that differ by no more make no pair, >= 0.
        max_extra_steps: a rejected explored episode is cut this many steps after the expert's length; null cuts
            nothing.
        pairs_per_problem: maximum number of pairs of one problem; null for all.
        trajectories: arguments of `TrajectoryDataModule`, without those of medium-quality episodes (`medium_files`,
            `medium_per_expert`, `medium_filter`) and `outcomes`. `predict` plays the experts' problems by default.

    Raises:
        ValueError: For a setting out of its range, or if no pair can be made.
    """

    training_batch = "PreferenceBatch"

    def __init__(
        self,
        explored_files: list[str],
        margin: float = 0.0,
        max_extra_steps: int | None = 5,
        pairs_per_problem: int | None = 1,
        **trajectories: Any,
    ) -> None:
        super().__init__(**trajectories)
        stored = self.trajectories
        if stored.predict_split == "train":  # exploration: of the experts' problems, as others make no pairs
            stored.predict_half = stored.predict_half or stored.train_half
            stored.predict_episodes_per_task = stored.predict_episodes_per_task or stored.train_episodes_per_task
        self.explored_files = explored_files
        self.pairing: dict[str, Any] = {
            "margin": margin, "max_extra_steps": max_extra_steps, "pairs_per_problem": pairs_per_problem
        }  # fmt: skip
        pair_with_experts([], [], **self.pairing)  # refuse bad settings before episodes are collected
        self.report = PairReport()
        self.pairs: list[PreferencePair] = []
        self.too_long = 0  # pairs left out, as a side has no decision within the context

    def load_training_data(self) -> None:
        stored = self.trajectories
        explored = stored.read(self.explored_files)
        self.report = report = pair_with_experts(stored.read(stored.expert_files()), explored, **self.pairing)
        chat = stored.read_tokenizer()
        rendered = [
            PreferencePair(
                f"{pair.chosen.id}>{pair.rejected.id}",
                self._rendered(pair.chosen, chat),
                self._rendered(pair.rejected, chat),
            )
            for pair in report.pairs
        ]
        self.pairs = [pair for pair in rendered if pair.chosen and pair.rejected]
        self.too_long = len(rendered) - len(self.pairs)
        logger.info(
            "%d pairs of %d explored episodes: %d won against the expert, %d tied, %d lost, %d without an expert's "
            "episode of their problem, %d more than pairs_per_problem; %d pairs without a decision within the context",
            len(self.pairs), len(explored), report.won, report.tied, report.lost, report.unmatched, report.surplus,
            self.too_long,
        )  # fmt: skip
        self._write_report()
        if not self.pairs:
            raise ValueError(
                f"no pairs to train on: of {len(explored)} explored episodes {report.unmatched} have no expert episode "
                f"of the same problem (same task, split and meta) and {report.tied} are tied with theirs, and "
                f"{self.too_long} pairs have no decision within max_length; explore the problems of the experts "
                "(train_files), with a policy that does not solve all of them"
            )
        sides = [side for pair in self.pairs for side in (pair.chosen, pair.rejected)]
        log_sizes(sides, stored.acting_agent.max_length)

    def _write_report(self) -> None:
        """Write the numbers of pairs to train on, and of explored episodes, into the run's folder, as `pairs.json`."""
        report, trainer = self.report, self.trainer
        if trainer is None or getattr(trainer, "fast_dev_run", False):  # a dry run keeps the file of the run
            return
        if trainer.is_global_zero and trainer.logger is not None:
            names = ("won", "tied", "lost", "unmatched", "surplus")
            counts = {"pairs": len(self.pairs), "too_long": self.too_long}
            counts |= {name: getattr(report, name) for name in names}
            write_json(Path(trainer.default_root_dir) / "pairs.json", counts)

    def _rendered(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Return the transcripts of an episode that hold a decision within the context."""
        agent = self.trajectories.acting_agent
        return within_context(agent.transcripts(episode, chat), agent.max_length)

    def train_dataloader(self) -> PairLoader:
        stored, trainer = self.trajectories, self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return self.in_position(
            PairLoader(self.pairs, batch_size=stored.batch_size, seed=stored.seed, rank=rank, world_size=world_size)
        )
