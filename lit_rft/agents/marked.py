"""Negative-aware training: any agent, told in the task how well to do (NAT, Wang et al. 2024, arXiv 2402.11651)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_rft.agents.around import AroundAgent, AroundSession
from lit_rft.agents.base import Agent, Session, Turn
from lit_rft.agents.flat import FlatAgent
from lit_rft.agents.opening import separate_task
from lit_rft.episodes import Episode
from lit_rft.transcripts import ChatFormat, Transcript


@dataclass(frozen=True)
class Marker:
    """A sentence for episodes of a range of scores.

    Args:
        text: appended to the task; the same for all episodes of the class.
        min_score: lowest final score of the class; null for the class of all that are below the others.
    """

    text: str
    min_score: float | None = None


def _success_and_failure() -> list[Marker]:
    return [Marker("Solve the task correctly.", 1.0), Marker("Solve the task in a wrong way.")]


@dataclass(frozen=True)
class MarkedAgent(AroundAgent):
    """An agent that reads a marker with its task: the best one when it acts, that of its score in a stored episode.

    Trained by `HierarchicalSFT` on successes and failures, the policy learns from both and acts by the best class.
    `TrajectoryDataModule` mixes them: `train_files` the successes, `medium_files` the failures, `medium_per_expert`
    their ratio (2 in the paper's preset). Markers without a meaning ("[1]", "[2]") are the paper's ablation.

    Args:
        agent: the agent that reads the marked task; null for `FlatAgent`.
        markers: classes of final scores, the best first; the last one has no `min_score`.

    Raises:
        ValueError: fewer than two markers, two with the same text, or scores that do not fall.
    """

    agent: Agent | None = None
    markers: Sequence[Marker] = field(default_factory=_success_and_failure)

    def __post_init__(self) -> None:
        scores = [marker.min_score for marker in self.markers[:-1]]
        falling = all(a is not None and b is not None and a > b for a, b in itertools.pairwise(scores))
        if len(self.markers) < 2 or None in scores or not falling or self.markers[-1].min_score is not None:
            raise ValueError(
                "markers must be two or more, with falling min_score and none in the last one (all that is below), "
                f"got min_score {', '.join(str(marker.min_score) for marker in self.markers) or 'of no marker'}"
            )
        texts = [marker.text for marker in self.markers]
        if len(set(texts)) < len(texts) or not all(text.strip() for text in texts):
            raise ValueError(f"markers must have different texts, got {texts}")

    @property
    def inner(self) -> Agent:
        """The agent that reads the marked task."""
        return self.agent if self.agent is not None else FlatAgent()

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        """Make a session that reads the best marker."""
        return _MarkedSession(self.inner.session(episode_id, chat), self.markers[0].text)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Render a stored episode with the marker of its final score."""
        task = separate_task(episode.task_description, episode.initial_observation)
        text = add_marker(task, self.marker_of(episode).text)
        return self.inner.transcripts(replace(episode, task_description=text), chat)

    def marker_of(self, episode: Episode) -> Marker:
        """Return the marker of an episode's class."""
        score = episode.outcome.score
        return next(m for m in self.markers if m.min_score is None or score >= m.min_score)


def add_marker(task_description: str, marker: str) -> str:
    """Append a marker to a task."""
    return f"{task_description}\n{marker}".lstrip()


class _MarkedSession(AroundSession):
    """A session whose task is marked."""

    def __init__(self, inner: Session, marker: str) -> None:
        super().__init__(inner)
        self._marker = marker

    def start(self, task_description: str, observation: str) -> Turn:
        task = separate_task(task_description, observation)
        return self.inner.start(add_marker(task, self._marker), observation)
