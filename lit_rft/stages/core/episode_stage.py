"""Constructor of the stages that act in environments."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from lit_rft.agents import Agent, HierarchicalAgent
from lit_rft.agents.optional import admissible_actions
from lit_rft.generation import SamplingSettings
from lit_rft.stages.core.evaluate_episodes import EpisodeEvaluator
from lit_rft.stages.core.policy import PolicyModule
from lit_rft.stages.core.settings import ActingSettings, BatchingSettings, OptimizerSettings, PolicySettings


class EpisodeStage(PolicyModule):
    """A stage with an agent, evaluated on episodes. Subclasses write `training_step`.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.

    Raises:
        ValueError: For an agent whose context has no room for an utterance.
    """

    evaluator: EpisodeEvaluator

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
    ) -> None:
        super().__init__(policy, optimizer, batching)
        self.acting = (acting or ActingSettings()).with_default_seed()
        self.agent: Agent = agent or HierarchicalAgent()
        check_agent(self.agent, self.acting)
        self.evaluator = EpisodeEvaluator(self.agent, self.acting)

    def check_training(self) -> None:
        if self.source is not None and self.acting.chat_server is not None:
            raise ValueError(
                f"{type(self).__name__} trains on what its own policy plays, got acting.chat_server, so another "
                "model would play: set acting.chat_server to null for fit (evaluation and predict may use it)"
            )
        super().check_training()


def check_agent(agent: Agent, acting: ActingSettings) -> None:
    """Check an agent.

    Raises:
        ValueError: For settings that checkpoints cannot keep, a context without room for an utterance, or choices with
            a generation server.
    """
    if not dataclasses.is_dataclass(agent):
        raise ValueError(f"agent must be a frozen dataclass, whose fields checkpoints keep; got {type(agent).__name__}")
    check_levels(agent, "acting.level_sampling", acting.level_sampling)
    check_room(agent, "acting.sampling", acting.sampling, *acting.level_sampling.values())
    admissible = admissible_actions(agent)
    if (acting.server or acting.chat_server) and admissible is not None and admissible.choose:
        raise ValueError(
            "a generation server does not sample among given choices: unset acting.server and acting.chat_server, or "
            "the agent's admissible.choose"
        )


def check_room(agent: Agent, setting: str, *samplings: SamplingSettings) -> None:
    """Check that an agent's context has room for an utterance, without which every episode ends at once.

    Raises:
        ValueError: It has none.
    """
    longest = max(sampling.max_new_tokens for sampling in samplings)
    if agent.levels and agent.max_length <= longest:
        raise ValueError(
            f"agent.max_length must be larger than {setting}.max_new_tokens, got {agent.max_length} and {longest}"
        )


def weights_of_levels(agent: Agent, weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weight of each level of an agent, 1 if it is not given.

    Raises:
        ValueError: For a level that the agent does not have, or a weight that is not a number >= 0.
    """
    weights = weights or {}
    check_levels(agent, "level_weights", weights)
    bad = {level: weight for level, weight in weights.items() if not 0 <= weight < math.inf}
    if bad:
        raise ValueError(f"level_weights must be finite numbers >= 0, got {bad}")
    return dict.fromkeys(agent.levels, 1.0) | dict(weights)


def check_levels(agent: Agent, setting: str, levels: Iterable[str]) -> None:
    """Check that a setting names levels of the agent.

    Raises:
        ValueError: For another level.
    """
    unknown = [level for level in levels if level not in agent.levels]
    if unknown:
        raise ValueError(
            f"{setting}: {type(agent).__name__} has the levels {', '.join(agent.levels)}, got {', '.join(unknown)}"
        )
