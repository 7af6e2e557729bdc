"""A small model trained from scratch on stored episodes, and its play on held-out problems, within one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from quiet import make_trainer

from lit_rft.agents import Agent, add_outcomes
from lit_rft.datamodules import StepLoader, TrajectoryDataModule
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer, save_scratch_model
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    EpisodeStage,
    HierarchicalSFT,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.transcripts import ChatFormat


class Player:
    """Plays with the same agent, seed and length of utterances in all stages.

    Args:
        agent: of the stages.
        seed: of weights, order and sampling.
        max_new_tokens: of an utterance.
    """

    def __init__(self, agent: Agent, seed: int, max_new_tokens: int) -> None:
        self.agent, self.seed, self.max_new_tokens = agent, seed, max_new_tokens

    def stage_settings(self) -> dict[str, Any]:
        """Return the settings that all stages share."""
        return {"agent": self.agent, "acting": self._acting(1.0), "batching": BatchingSettings(4096)}

    def _acting(self, temperature: float) -> ActingSettings:
        sampling = SamplingSettings(self.max_new_tokens, temperature)
        return ActingSettings(sampling, 200, pool=PoolSettings(threads=True), seed=self.seed)

    def fine_tune(
        self,
        folder: Path,
        episodes: Sequence[Episode],
        texts: Iterable[str],
        *,
        steps: int,
        rate: float,
        clock: contextlib.AbstractContextManager[None],
    ) -> Path:
        """Fine-tune an untrained model by SFT, 8 episodes a step; return the folder of its weights and tokenizer.

        Args:
            folder: of the untrained model, `model`, and the trained one, `sft`.
            episodes: to train on.
            texts: of the tokenizer.
            steps: optimiser steps.
            rate: learning rate.
            clock: around training.
        """
        model, out = save_scratch_model(folder / "model", texts, seed=self.seed), folder / "sft"
        chat = ChatFormat(load_tokenizer(str(model)))
        transcripts = [add_outcomes(self.agent.transcripts(e, chat), e, chat, self.agent) for e in episodes]
        optimizer = OptimizerSettings(rate, warmup_steps=10, schedule="cosine")
        stage = HierarchicalSFT(
            PolicySettings(str(model), None), optimizer, average_tokens=False, **self.stage_settings()
        )
        L.seed_everything(self.seed, verbose=False)
        loader = StepLoader(transcripts, batch_size=8, seed=self.seed)
        with clock:
            make_trainer(max_steps=steps, max_epochs=-1).fit(stage, loader)
        chat.tokenizer.save_pretrained(out)
        policy: Any = stage.policy
        policy.save_pretrained(out)
        return out

    def held_out(self, stage: EpisodeStage, suite: Any, tasks: list[str] | None = None) -> dict[str, list[Episode]]:
        """Play the test problems of a suite at temperature 1 (`sampled`) and greedily (`greedy`)."""
        played = {}
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            stage.evaluator.acting = self._acting(temperature)
            data = TrajectoryDataModule(suite=suite, eval_split="test", seed=self.seed, tasks=tasks)
            make_trainer().test(stage, data, verbose=False)
            played[name] = [result.episode for result in stage.evaluator.results]
        return played
