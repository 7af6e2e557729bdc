"""An agent outside the library: it writes a thought in one line and its action in the next."""

from dataclasses import dataclass

from lit_rft.agents import Act, Ask, Session, Turn, replay, step_outcomes
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class ThinkingAgent:
    """Thoughts are recorded as subgoals of one step; of an expert's episode, its subgoals are the thoughts."""

    prompt: str = "Think in one line, act in the next."
    max_length: int = 2048

    @property
    def levels(self) -> tuple[str, ...]:
        return ("thinking",)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ThinkingSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        thoughts = [span.goal for span in episode.subgoals for _ in range(span.start, span.end)]
        lines = [f"{thought}\n{step.action}" for thought, step in zip(thoughts, episode.steps, strict=True)]
        return replay(self.session(episode.id, chat), episode, chat, {"thinking": lines})

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation


class ThinkingSession:
    def __init__(self, agent: ThinkingAgent, chat: ChatFormat) -> None:
        self.agent, self.chat, self.malformed, self.thoughts = agent, chat, 0, list[str]()

    def start(self, task_description: str, observation: str) -> Turn:
        return Ask("thinking", self.chat.head(self.agent.prompt, f"{task_description}\n{observation}"))

    def receive(self, text: str) -> Turn:
        thought, _, action = text.partition("\n")
        self.malformed += not action
        self.thoughts.append(thought or "-")
        return Act(action)

    def observe(self, observation: str) -> Turn:
        return Ask("thinking", self.chat.turn(observation))

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        thoughts = enumerate(self.thoughts[:num_steps])
        return [Subgoal(n, n + 1, thought, completed=False, annotator="policy") for n, thought in thoughts]
