"""An agent outside the library with three levels: a planner, a worker, and a critic who reads the worker's action."""

from dataclasses import dataclass

from lit_rft.agents import Act, Ask, Session, Turn, replay, step_outcomes
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class ThreeLevelAgent:
    """Each level decides once per step; plans are recorded as subgoals of one step."""

    max_length: int = 900

    @property
    def levels(self) -> tuple[str, ...]:
        return ("planner", "worker", "critic")

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ThreeLevelSession(chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        plans = [span.goal for span in episode.subgoals for _ in range(span.start, span.end)]
        actions = [step.action for step in episode.steps]
        utterances = {"planner": plans, "worker": actions, "critic": ["fine" for _ in actions]}
        return replay(self.session(episode.id, chat), episode, chat, utterances)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation


class ThreeLevelSession:
    def __init__(self, chat: ChatFormat) -> None:
        self.chat, self.malformed, self.plans, self.asked = chat, 0, list[str](), "planner"
        self.observation = self.action = ""

    def _ask(self, level: str, text: str) -> Turn:
        self.asked = level
        first = len(self.plans) <= (level != "planner")  # a level's first prompt has the system text
        return Ask(level, self.chat.head(f"You are the {level}.", text) if first else self.chat.turn(text))

    def start(self, task_description: str, observation: str) -> Turn:
        return self.observe(f"{task_description}\n{observation}")

    def receive(self, text: str) -> Turn:
        if self.asked == "planner":
            self.plans.append(text or "-")
            return self._ask("worker", f"{self.observation}\nPlan: {text}")
        if self.asked == "worker":
            self.action = text
            return self._ask("critic", f"Action: {text}")
        return Act(self.action)

    def observe(self, observation: str) -> Turn:
        self.observation = observation
        return self._ask("planner", observation)

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        plans = enumerate(self.plans[:num_steps])
        return [Subgoal(n, n + 1, plan, completed=False, annotator="policy") for n, plan in plans]
