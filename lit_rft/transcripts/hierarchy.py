"""The hierarchy in words: what each level reads, how it answers, and an episode as its levels' transcripts.

The same functions write the prompts in training and in acting: a policy is trained on exactly what it will read.
"""

import json
from dataclasses import dataclass

from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts.chat import ChatFormat
from lit_rft.transcripts.transcript import Transcript

DONE, CONTINUE = "done", "continue"


@dataclass(frozen=True)
class HierarchyPrompts:
    """System texts (GLIDER's hierarchy prompts: they say which level is asked) and what the low level may read. Outer
    blanks of what a level reads in a turn are left out.

    Args:
        high: system text of the high level, which writes subgoals.
        low: system text of the low level, which acts and says whether its subgoal is done.
        flat: system text of an agent without hierarchy.
        low_level_sees_task: if False, the low level reads subgoals and observations only, pi(a | g, o) to the letter.
    """

    high: str = "You plan. Read the task and what was observed, and answer with the next subgoal."
    low: str = (
        f"You act. Reach the current subgoal: answer with one action, then {DONE!r} on a new line if it completes "
        f"the subgoal, else {CONTINUE!r}."
    )
    flat: str = "You act. Read the task and what was observed, and answer with the next action."
    low_level_sees_task: bool = True

    def high_opening(self, task_description: str, observation: str) -> str:
        return f"Task: {task_description}\n\n{observation}".strip()

    def high_update(self, observation: str) -> str:
        """What the high level reads when a subgoal has ended: the observation it ended with (o_{t+c})."""
        return observation.strip()

    def low_opening(self, task_description: str, observation: str, goal: str) -> str:
        task = f"Task: {task_description}\n\n" if self.low_level_sees_task else ""
        return f"{task}{observation}\n\nSubgoal: {goal}".strip()

    def low_update(self, observation: str, goal: str | None = None) -> str:
        """What the low level reads after its action; `goal` when a new subgoal begins with it."""
        return (observation if goal is None else f"{observation}\n\nSubgoal: {goal}").strip()

    def update(self, level: str, observation: str) -> str:
        """What a level reads after its last decision when no new subgoal begins."""
        return self.high_update(observation) if level == "high" else self.low_update(observation)

    def flat_opening(self, task_description: str, observation: str) -> str:
        return f"Task: {task_description}\n\n{observation}".strip()


@dataclass(frozen=True)
class LowLevelAnswer:
    """A low-level utterance taken apart: the action, the completion flag, and whether it had the agreed form."""

    action: str
    subgoal_done: bool
    malformed: bool


def write_single_line(text: str) -> str:
    """Write an action or a subgoal as one line; `parse_single_line` gives it back.

    Nearly every text is its own line. What would not come back (an empty text, line breaks, outer blanks, and what is
    a JSON string itself) is written as a JSON string.
    """
    if len(text.splitlines()) == 1 and text == text.strip() and _quoted(text) is None:
        return text
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line.splitlines()) == 1 else json.dumps(text)  # Unicode's line breaks are escaped here only


def parse_single_line(text: str) -> tuple[str, bool]:
    """Read a flat agent's action or a high level's subgoal.

    Returns: the first line, or the text that it has as a JSON string; and whether there was anything but one line.
    """
    lines = _lines(text)
    return (_read_line(lines[0]) if lines else ""), len(lines) != 1


def write_low_level_answer(action: str, subgoal_done: bool) -> str:
    """Write an action, as `write_single_line` does, and a flag; `parse_low_level_answer` gives both back."""
    return f"{write_single_line(action)}\n{DONE if subgoal_done else CONTINUE}"


def parse_low_level_answer(text: str) -> LowLevelAnswer:
    """Read an action and a flag from any text. Without a proper flag the first line is the action and the subgoal goes
    on; `malformed` says so. Never raises."""
    lines = _lines(text)
    if len(lines) == 2 and lines[1] in (DONE, CONTINUE):
        return LowLevelAnswer(_read_line(lines[0]), lines[1] == DONE, malformed=False)
    return LowLevelAnswer(_read_line(lines[0]) if lines else "", False, malformed=True)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_line(line: str) -> str:
    quoted = _quoted(line)
    return line if quoted is None else quoted


def _quoted(line: str) -> str | None:
    """The text that a line has as a JSON string; None if it is none."""
    if not (len(line) >= 2 and line[0] == line[-1] == '"'):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def hierarchy_transcripts(episode: Episode, chat: ChatFormat, prompts: HierarchyPrompts) -> list[Transcript]:
    """An episode with subgoals as its high-level and its low-level transcript.

    Raises: ValueError if the episode has steps but no subgoals.
    """
    if not episode.steps:
        return []
    if not episode.subgoals:
        raise ValueError(f"episode {episode.id!r} has no subgoals: annotate it first, or train with hierarchy=False")
    return [_high_transcript(episode, chat, prompts), _low_transcript(episode, chat, prompts)]


def flat_transcripts(episode: Episode, chat: ChatFormat, prompts: HierarchyPrompts) -> list[Transcript]:
    """An episode as one transcript of observations and actions, without hierarchy."""
    if not episode.steps:
        return []
    transcript = Transcript("flat", chat.end_of_turn_id, episode.id)
    opening = prompts.flat_opening(episode.task_description, episode.initial_observation)
    transcript.append_prompt(chat.head(prompts.flat, opening))
    for index, step in enumerate(episode.steps):
        if index:
            transcript.append_prompt(chat.turn(prompts.update("flat", episode.steps[index - 1].observation)))
        transcript.append_utterance(chat.utterance(write_single_line(step.action)))
    return [transcript]


def _high_transcript(episode: Episode, chat: ChatFormat, prompts: HierarchyPrompts) -> Transcript:
    transcript = Transcript("high", chat.end_of_turn_id, episode.id)
    opening = prompts.high_opening(episode.task_description, episode.initial_observation)
    transcript.append_prompt(chat.head(prompts.high, opening))
    for index, subgoal in enumerate(episode.subgoals):
        if index:
            transcript.append_prompt(chat.turn(prompts.high_update(_before(episode, subgoal))))
        transcript.append_utterance(chat.utterance(write_single_line(subgoal.goal)))
    return transcript


def _low_transcript(episode: Episode, chat: ChatFormat, prompts: HierarchyPrompts) -> Transcript:
    transcript = Transcript("low", chat.end_of_turn_id, episode.id)
    opening = prompts.low_opening(episode.task_description, episode.initial_observation, episode.subgoals[0].goal)
    transcript.append_prompt(chat.head(prompts.low, opening))
    for subgoal in episode.subgoals:
        for index in range(subgoal.start, subgoal.end):
            if index:
                goal = subgoal.goal if index == subgoal.start else None
                transcript.append_prompt(chat.turn(prompts.low_update(episode.steps[index - 1].observation, goal)))
            done = subgoal.completed and index == subgoal.end - 1
            transcript.append_utterance(chat.utterance(write_low_level_answer(episode.steps[index].action, done)))
    return transcript


def _before(episode: Episode, subgoal: Subgoal) -> str:
    return episode.steps[subgoal.start - 1].observation
