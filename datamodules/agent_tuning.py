"""AgentTuning's mixture: trajectories of agents with general instruction data."""

import logging
from collections import Counter
from typing import Any

from lit_rft.datamodules.around import AroundTrajectories
from lit_rft.datamodules.instructions import instruction_transcripts
from lit_rft.datamodules.loaders import StepLoader
from lit_rft.rows import as_list

logger = logging.getLogger(__name__)


class AgentTuningDataModule(AroundTrajectories):
    r"""Agent trajectories and general instruction data by ratio, for `HierarchicalSFT` (AgentTuning, arXiv 2310.12823).

        J = eta E_agent[log pi(y|x)] + (1 - eta) E_general[log pi(y|x)]

    as a mixture of the data: each epoch has all trajectories once and as many conversations, cycling through all, that
    a share of `agent_share` is of agents. With `pooled: true` the stage weighs every utterance alike. `train_files` may
    hold episodes of several environments; evaluation plays those of `suite`.

    Args:
        general_files: conversations: Parquet, JSON lines, JSON or CSV files, folders, patterns, or `hf:NAME`.
        agent_share: eta, in (0, 1]; 1 is training on the trajectories alone (the paper: 0.2).
        general_column: column of the messages; null for `messages` or `conversations`.
        trajectories: arguments of `TrajectoryDataModule`, without those of medium-quality episodes (`medium_files`,
            `medium_per_expert`, `medium_filter`) and `outcomes`.

    Raises:
        ValueError: For a value out of range, or without conversations.
        ProblemError: For a bad row; it names file, row and field.
    """

    training_batch = "StepTranscripts"

    def __init__(
        self,
        general_files: list[str] | str,
        agent_share: float = 0.2,
        general_column: str | None = None,
        **trajectories: Any,
    ) -> None:
        if not 0 < agent_share <= 1:
            raise ValueError(f"agent_share must be in (0, 1], got {agent_share}")
        super().__init__(**trajectories)
        self.general_files = as_list(general_files)
        self.general_column, self.agent_share = general_column, agent_share

    def load_training_data(self) -> None:
        stored = self.trajectories
        stored.load_training_data()
        by_env = Counter(episode.env for episode in stored.episodes)
        if self.agent_share < 1:
            files, length = self.general_files, stored.acting_agent.max_length
            chat = stored.read_tokenizer()
            general = instruction_transcripts(files, chat, max_length=length, column=self.general_column)
            if not general:
                raise ValueError(f"no conversations in {', '.join(files) or 'general_files'}: set agent_share to 1")
            stored.medium = [[transcript] for transcript in general]
            stored.medium_per_expert = (1 - self.agent_share) / self.agent_share
        counts = ", ".join(f"{number} episodes of {env}" for env, number in by_env.items())
        logger.info("%d conversations and %s", len(stored.medium), counts)

    def train_dataloader(self) -> StepLoader:
        return self.in_position(self.trajectories.training_loader())
