"""Answers in the utterances of a chat format, possibly after a thought."""

from typing import NamedTuple

from lit_rft.agents.formats import AnswerFormat, FirstLine
from lit_rft.transcripts import ChatFormat


class ReadAnswer(NamedTuple):
    """The parts of an utterance.

    Attributes:
        action: for the environment; empty for an invalid answer.
        malformed: whether the utterance departs from the format; invalid answers are malformed.
        valid: whether it has an action.
    """

    action: str
    malformed: bool
    valid: bool


def read_answer(answer_format: AnswerFormat | None, chat: ChatFormat, text: str) -> ReadAnswer:
    """Parse any utterance. One without an action, or with an unfinished thought, is invalid: its action is empty."""
    spoken = chat.answer(text)
    answer = None if spoken is None else (answer_format or FirstLine()).parse(spoken)
    return ReadAnswer("", True, False) if answer is None else ReadAnswer(answer.action, answer.malformed, True)


def write_answer(
    answer_format: AnswerFormat | None, chat: ChatFormat, action: str, thought: str = "", more: str = ""
) -> str:
    """Write an utterance.

    Args:
        answer_format: of the action; None for `FirstLine`.
        chat: if its template opens a thought, the thought is written there, and closed before the answer.
        action: any text.
        thought: empty for none.
        more: text after the action.
    """
    answer_format = answer_format or FirstLine()
    if chat.thoughts.opening:
        return chat.answer_text(answer_format.render(action) + more, thought)
    return answer_format.render(action, thought) + more


def system_text(prompt: str, answer_format: AnswerFormat | None) -> str:
    """Return a system prompt with the instruction of the answer format."""
    instruction = (answer_format or FirstLine()).instruction
    return f"{prompt}\n\n{instruction}" if instruction else prompt
