"""SwiftSage (Lin et al. 2023, arXiv 2305.17390): Swift acts, and Sage plans several actions where Swift is stuck."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.base import Act, Ask, Session, Turn, check_positive
from lit_rft.agents.examples import Examples
from lit_rft.agents.formats import FirstLine
from lit_rft.agents.swift import SWIFT, SwiftAgent, SwiftSession, fitting
from lit_rft.agents.switch import Rule, Situation, SwitchSettings, switch
from lit_rft.episodes import Episode, Step, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

SAGE = "sage"
# Blanks stay within the line: an empty "Action 1:" must not take the next one. Marks of bold print may stand around the
# separator; "1.5 cups" is no number of a line.
_NUMBERED = re.compile(
    r"^[^\w\n]*(?:action[^\S\n]*)?\d+\**[^\S\n]*(?:[:)]|\.(?!\d))\**[^\S\n]*(\S.*)$", re.MULTILINE | re.IGNORECASE
)
_QUESTIONS = """Answer briefly:
1. Which objects are needed, and where are they?
2. Which of them are missing, and where could they be found?
3. Which subgoals, at most five, solve the task in order?
4. Which of them are done, and which one comes next?
5. Which mistakes were made, and how can they be repaired?"""


@dataclass(frozen=True)
class SagePrompts:
    """Prompts of Sage.

    Args:
        plan: system prompt of the plan.
        ground: system prompt of the actions that follow it.
    """

    plan: str = "You advise an agent that solves a task in a text environment. Read its state and plan ahead."
    ground: str = (
        "You turn a plan into the next actions of an agent in a text environment. Answer with one action per line, "
        'each in the form "Action 1: ..." and in the words of the environment.'
    )


@dataclass(frozen=True)
class SwiftSageAgent:
    """Swift proposes each action; by a table of rules it is taken, or Sage plans and fills a buffer of actions.

    The buffer's actions are played without sampling. An entry that is not admissible, or that the environment refuses,
    is a failed attempt; too many of them empty the buffer, and Swift goes on. Sage's level can have another model than
    Swift's (see `lit_rft.rollouts.EpisodeRunner`); by default it is the policy itself.

    Training renders episodes as Swift's examples: Sage does not learn.

    Args:
        swift: the fast policy.
        switch: numbers of the rules, see `lit_rft.agents.switch.RULES`.
        prompts: of Sage.
        examples: expert episodes in the prompt of the plan; null for none.
        critical: beginnings of actions that may decide an episode at once, such as ScienceWorld's `focus on`.
        max_buffer: maximum number of actions of a call of Sage, > 0.
        max_attempts: failed attempts that empty the buffer, > 0.
        shown_actions: maximum number of admissible actions in the prompt of the actions, > 0.
        admissible: limits of the lists of admissible actions, against which proposed actions are checked if the
            environment reports them; null for no check.
    """

    swift: SwiftAgent = field(default_factory=SwiftAgent)
    switch: SwitchSettings = field(default_factory=SwitchSettings)
    prompts: SagePrompts = field(default_factory=SagePrompts)
    examples: Examples | None = None
    critical: Sequence[str] = ()
    max_buffer: int = 5
    max_attempts: int = 2
    shown_actions: int = 50
    admissible: AdmissibleActions | None = field(
        default_factory=lambda: AdmissibleActions(show=False, limit=10_000, max_characters=1_000_000)
    )

    def __post_init__(self) -> None:
        check_positive(self, "max_buffer", "max_attempts", "shown_actions")
        if self.admissible is not None and (self.admissible.choose or self.admissible.show):
            raise ValueError(
                "admissible.show and admissible.choose must be false: the lists check proposed actions only"
            )

    @property
    def levels(self) -> tuple[str, ...]:
        return (SWIFT, SAGE)

    @property
    def max_length(self) -> int:
        return self.swift.max_length

    @property
    def keep_turns(self) -> bool:
        return False

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return SwiftSageSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make Swift's transcripts."""
        return self.swift.transcripts(episode, chat)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Refuse: Swift's proposals are not the steps of an episode.

        Raises:
            ValueError: In every case.
        """
        raise ValueError("SwiftSage is trained by imitation only: use HierarchicalSFT, or SwiftAgent in offline RL")

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class SwiftSageSession:
    """One episode of a `SwiftSageAgent`."""

    def __init__(self, agent: SwiftSageAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat.at(SAGE)
        self._swift = SwiftSession(agent.swift, chat.at(SWIFT))
        self.rules: list[Rule] = []  # that decided so far
        self._task = ""
        self._admissible: set[str] = set()
        self._shown: list[str] = []
        self._buffer: list[str] = []
        self._attempts = self._calls = self._failures = 0
        self._from_buffer = False  # whether the last action was
        self._called_at: int | None = None
        self._proposal = Act("")
        self._waiting = ""  # for swift, plan, ground or again
        self._plan = ""

    @property
    def malformed(self) -> int:
        return self._swift.malformed

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        """Take the name of the task, which chooses the examples."""
        self._task = task

    def admit(self, actions: Sequence[str]) -> None:
        """Take the admissible actions; empty if they are unknown."""
        self._admissible, self._shown = set(actions), list(actions[: self.agent.shown_actions])

    def notice(self, step: Step) -> None:
        """Take the last step."""
        self._swift.notice(step)
        if not step.valid:
            self._failures += 1
            self._attempts += self._from_buffer
            self._empty_after_failures()

    def start(self, task_description: str, observation: str) -> Turn:
        self._waiting = SWIFT
        return self._swift.start(task_description, observation)

    def observe(self, observation: str) -> Turn:
        """Play the buffer, or ask Swift once it is spent."""
        return self._act_from_buffer() or self._ask_swift()

    def receive(self, text: str) -> Turn:
        if self._waiting == SWIFT:
            return self._choose(self._swift.receive(text))
        answer = self.chat.answer(text) or ""
        if self._waiting == "plan":
            self._plan = answer.strip()
            return self._ask_for_actions("ground")
        self._buffer = self._parse(answer)
        if not self._buffer and self._waiting == "ground":
            return self._ask_for_actions("again")
        self._attempts = 0
        return self._act_from_buffer() or self._act_by_swift()

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []

    def situation(self, action: str) -> Situation:
        """Return the facts on which the rules decide about an action that Swift proposes."""
        steps, settings = self._swift.progress.steps, self.agent.switch
        rewarded = [index for index, step in enumerate(steps, start=1) if step.reward > 0]
        return Situation(
            steps=len(steps),
            since_reward=len(steps) - (rewarded[-1] if rewarded else 0),
            since_sage=None if self._called_at is None else len(steps) - self._called_at,
            calls=self._calls,
            failures=self._failures,
            admissible=self._is_admissible(action),
            critical=action.startswith(tuple(self.agent.critical)),
            repeated=action in [step.action for step in steps[-settings.repeat_window :]],
        )

    def _is_admissible(self, action: str) -> bool:
        return action in self._admissible or not self._admissible

    def _choose(self, proposal: Act) -> Turn:
        self._proposal = proposal
        self.rules.append(switch(self.situation(proposal.text), self.agent.switch))
        if not self.rules[-1].sage:
            return self._act_by_swift()
        self._called_at, self._failures = len(self._swift.progress.steps), 0
        self._calls += 1
        return self._ask_for_plan()

    def _act_by_swift(self) -> Act:
        self._from_buffer, self._calls = False, 0
        return self._proposal

    def _act_from_buffer(self) -> Act | None:
        """Return the next admissible action of the buffer, if there is one."""
        while self._buffer:
            action = self._buffer.pop(0)
            if self._is_admissible(action):
                self._from_buffer = True
                return Act(action)
            self._attempts += 1
            self._empty_after_failures()
        return None

    def _empty_after_failures(self) -> None:
        if self._attempts >= self.agent.max_attempts:
            self._buffer = []

    def _ask_swift(self) -> Ask:
        self._waiting = SWIFT
        return self._swift.ask()

    def _ask_for_plan(self) -> Ask:
        swift, examples = self.agent.swift, self.agent.examples
        shown = "" if examples is None else examples.text(self._task, FirstLine(), self.chat)
        failed = [step.action for step in self._swift.progress.steps[-swift.history :] if not step.valid]
        refused = f"\nRefused actions: {', '.join(failed)}" if failed else ""
        rest = f"{refused}\nProposed action: {self._proposal.text}\n\n{_QUESTIONS}"
        return self._ask_sage("plan", self.agent.prompts.plan, shown, rest, 2 * swift.history)

    def _ask_for_actions(self, waiting: str) -> Ask:
        actions = f"\nPossible actions: {', '.join(self._shown)}" if self._shown else ""
        rest = f"\n\nPlan:\n{self._plan}\n{actions}\nWrite up to {self.agent.max_buffer} actions."
        if waiting == "again":
            rest += ' Your last answer had no line of the form "Action 1: ...": answer with such lines only.'
        return self._ask_sage(waiting, self.agent.prompts.ground, "", rest, self.agent.swift.history)

    def _ask_sage(self, waiting: str, system: str, before: str, after: str, history: int) -> Ask:
        self._waiting = waiting
        progress, swift = self._swift.progress, self.agent.swift

        def user(number: int) -> str:
            return f"{before}{swift.state(progress, number)}{after}"

        return Ask(SAGE, fitting(self.chat, system, user, history, self.agent.max_length))

    def _parse(self, text: str) -> list[str]:
        """Read the numbered lines; an expected result behind an arrow is left out."""
        lines = [match.group(1) for match in _NUMBERED.finditer(text)]
        actions = [line.split("-->")[0].strip().strip("*`\"'").strip() for line in lines]
        return [action for action in actions if action][: self.agent.max_buffer]
