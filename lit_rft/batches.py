"""Batches on the host, from data modules to stages: without tensors, independent of memory and device.

None of them is a dataclass: Lightning would search the fields of a dataclass for tensors to move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.episodes import Episode
from lit_rft.problems import Problem
from lit_rft.transcripts import Transcript

if TYPE_CHECKING:
    from typing_extensions import Self


class HostBatch:
    """A batch without tensors."""

    def to(self, *args: Any, **kwargs: Any) -> "Self":
        """Return the batch: there are no tensors to move."""
        return self


class StepTranscripts(HostBatch):
    """Transcripts of stored episodes for one optimiser step, this process's share.

    Args:
        transcripts: may be empty if there are fewer transcripts than processes.
        num_utterances: number of utterances of each level, over all processes: normalised by it, the update does not
            depend on how the step is split.
    """

    def __init__(self, transcripts: list[Transcript], num_utterances: dict[str, int]) -> None:
        self.transcripts, self.num_utterances = transcripts, num_utterances

    @property
    def num_tokens(self) -> int:
        """Number of this process's tokens."""
        return sum(map(len, self.transcripts))


class OnlineBatch(HostBatch):
    """One round of online training.

    Args:
        jobs: episodes to play; this process's share.
        offline: transcripts of all stored episodes, to mix in.
    """

    def __init__(self, jobs: EpisodeJobs, offline: Sequence[Sequence[Transcript]] = ()) -> None:
        self.jobs, self.offline = jobs, offline


@dataclass(frozen=True)
class ExpertEpisode:
    """An expert episode as token ids.

    Args:
        transcripts: its conversations.
        text: its actions, one per line.
        score: final score.
        episode: its record, for advantages per decision; None if there are none.
    """

    transcripts: list[Transcript]
    text: str
    score: float
    episode: Episode | None = None


@dataclass(frozen=True)
class EpisodeGroup:
    """An episode to play, and expert episodes of the same problem."""

    job: EpisodeSpec
    experts: list[ExpertEpisode]


class EpisodeGroupBatch(HostBatch):
    """The tasks of one rollout, this process's share.

    Args:
        groups: in order.
        jobs: environment and task names; contains no episodes itself.
    """

    def __init__(self, groups: list[EpisodeGroup], jobs: EpisodeJobs) -> None:
        self.groups, self.jobs = groups, jobs


@dataclass(frozen=True)
class Prompt:
    """A problem as token ids.

    Args:
        problem: the record.
        ids: of the prompt.
        traces: ids of the off-policy completions, including their end tokens.
        trace_texts: texts of the traces.
        trace_log_probs: of each trace's tokens under the policy that wrote it; an empty list if unknown.
    """

    problem: Problem
    ids: list[int]
    traces: list[list[int]]
    trace_texts: list[str]
    trace_log_probs: list[list[float]]


class PromptBatch(HostBatch):
    """The prompts of one rollout, this process's share.

    Args:
        prompts: in order.
        sources: benchmarks of all batches.
    """

    def __init__(self, prompts: list[Prompt], sources: Sequence[str] = ()) -> None:
        self.prompts, self.sources = prompts, list(sources)
