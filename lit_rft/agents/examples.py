"""Examples in prompts, made from expert episodes of the training split."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_rft.agents.base import check_positive
from lit_rft.agents.formats import AnswerFormat
from lit_rft.agents.lines import CUT, cut_at, longest_fitting
from lit_rft.agents.opening import opening_text
from lit_rft.agents.records import recorded_thoughts
from lit_rft.episodes import Episode, read_episodes
from lit_rft.transcripts import ChatFormat


@dataclass(frozen=True)
class Examples:
    """Examples of the task that is played: its shortest solved episodes, as text.

    A thought is the record's (`extra.thoughts`), or else names the next subgoal, where one begins.

    Args:
        files: episode files or folders; every episode must be of the split `train`.
        number: examples per task, > 0.
        max_tokens: of all examples of a task, > 0; the middle of a longer text is left out, step by step, then the ends
            of the observations.

    Raises:
        ValueError: a number is out of range, or there is no file.
    """

    files: Sequence[str]
    number: int = 1
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        check_positive(self, "number", "max_tokens")
        if not self.files:
            raise ValueError("examples.files must name files of expert episodes, got none")

    def episodes(self, task: str) -> list[Episode]:
        """Return the examples of a task.

        Raises:
            ValueError: If there is none, or the files have episodes of another split.
        """
        by_task = _read(tuple((path, _modified(path)) for path in self.files))
        if task not in by_task:
            raise ValueError(
                f"expected a solved episode of the task {task!r} in {', '.join(self.files)}, which have those of "
                f"{', '.join(sorted(by_task)) or 'no task'}: collect expert episodes of it"
            )
        return by_task[task][: self.number]

    def text(self, task: str, answer_format: AnswerFormat, chat: ChatFormat) -> str:
        """Write the examples of a task, with a blank line at the end.

        Raises:
            ValueError: They are longer than `max_tokens` even with two steps each and no observation of theirs.
        """
        episodes = self.episodes(task)
        room = self.max_tokens // len(episodes)
        texts = [_fitting(episode, answer_format, chat, room) for episode in episodes]
        return "".join(texts)


def step_texts(episode: Episode, answer_format: AnswerFormat) -> list[str]:
    """Write each step of an episode: thought and action, then the observation."""
    thoughts = recorded_thoughts(episode)
    goals = {span.start: span.goal for span in episode.subgoals}
    return [
        f"{answer_format.render(step.action, thoughts[index] or _thought(goals.get(index)))}\n"
        f"Observation: {step.observation.strip()}"
        for index, step in enumerate(episode.steps)
    ]


def _thought(goal: str | None) -> str:
    return "" if goal is None else f"Next I should {goal}."


def _fitting(episode: Episode, answer_format: AnswerFormat, chat: ChatFormat, room: int) -> str:
    """Write an example of at most `room` tokens."""
    sizes = [len(chat.utterance(step)) for step in step_texts(episode, answer_format)]
    longest = max((len(step.observation) for step in episode.steps), default=0)

    def write(length: int) -> str:
        """Write the kept steps with observations of at most this many characters."""
        steps = [replace(step, observation=cut_at(step.observation.strip(), length)) for step in episode.steps]
        return _example(episode, step_texts(replace(episode, steps=steps), answer_format), kept)

    def size(length: int) -> int:
        return len(chat.utterance(write(length)))

    kept = list(range(len(sizes)))
    while len(kept) > 2 and sum(sizes[index] for index in kept) > room:  # without tokenizing the text at each step
        del kept[len(kept) // 2]
    while len(kept) > 2 and size(longest) > room:
        del kept[len(kept) // 2]
    length = longest_fitting(longest, lambda length: size(length) <= room)
    if length is None:
        raise ValueError(
            f"examples.max_tokens leaves {room} tokens for each example, and {episode.id!r} has {size(0)} with two "
            "steps without their observations: raise it"
        )
    return write(length)


def _example(episode: Episode, steps: Sequence[str], kept: Sequence[int]) -> str:
    """Write an example of some of an episode's steps, with a mark where others were left out."""
    lines = ["Example:", opening_text(episode.task_description, episode.initial_observation.strip())]
    for position, index in enumerate(kept):
        if position and index != kept[position - 1] + 1:
            lines.append(CUT)
        lines.append(steps[index])
    return "\n".join([*lines, "\n"])


def _modified(path: str) -> float:
    """Return the latest change of a file or of the files in a folder: a rewritten one is read again."""
    folder = Path(path)
    return max((os.path.getmtime(file) for file in (folder, *folder.glob("*")) if file.exists()), default=0.0)


@functools.lru_cache(maxsize=8)
def _read(files: tuple[tuple[str, float], ...]) -> dict[str, list[Episode]]:
    by_task: dict[str, list[Episode]] = {}
    for path, _ in files:
        for episode in read_episodes(path):
            if episode.split != "train":
                raise ValueError(
                    f"{path}: examples must be of the split 'train', got {episode.id!r} of the split {episode.split!r}"
                )
            if episode.outcome.success:
                by_task.setdefault(episode.task, []).append(episode)
    for episodes in by_task.values():
        episodes.sort(key=lambda episode: (len(episode.steps), episode.id))
    return by_task
