"""Instruction data as transcripts: conversations of any chat data set, trained on the assistant's messages."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from lit_rft.problems import ProblemError
from lit_rft.problems.messages import messages_from_text, read_messages
from lit_rft.rows import find_files, read_rows
from lit_rft.transcripts import ChatFormat, Transcript

logger = logging.getLogger(__name__)
GENERAL = "general"  # level of the transcripts
COLUMNS = ("messages", "conversations", "conversation")  # in this order, unless one is named


def instruction_transcripts(
    files: Sequence[str], chat: ChatFormat, *, max_length: int, column: str | None = None
) -> list[Transcript]:
    """Read conversations as transcripts of the level `general`.

    A message with `loss: false` is read by the model, and not trained on (AgentInstruct's example turns). Conversations
    that are longer than the context lose their last turns.

    Args:
        files: Parquet, JSON lines, JSON or CSV files, folders, patterns, or `hf:NAME`.
        chat: chat format of the tokenizer.
        max_length: context length in tokens.
        column: of the messages; None for the first of `messages`, `conversations`, `conversation`.

    Raises:
        ProblemError: For a bad row; it names file, row and field.
    """
    transcripts, number = [], 0
    for file, row_number, row in _rows(files):
        number += 1
        try:
            transcript = conversation_transcript(*_conversation(row, column), chat, f"{file}:{row_number}")
        except ProblemError as error:
            raise ProblemError(error.message, error.field, file, row_number) from error
        if (kept := _beginning(transcript, max_length)) is not None:
            transcripts.append(kept)
    if len(transcripts) < number:
        logger.warning(
            "%d of %d conversations are left out: no trained message ends within max_length=%d",
            number - len(transcripts), number, max_length,
        )  # fmt: skip
    return transcripts


def conversation_transcript(
    messages: Sequence[dict[str, str]], trained: Sequence[bool], chat: ChatFormat, name: str
) -> Transcript:
    """Render a conversation.

    Args:
        messages: with `role` and `content`; after the first answer, user and assistant alternate.
        trained: for each message whether it counts in the loss; no effect but for the assistant's.
        chat: chat format of the tokenizer.
        name: of the conversation.

    Raises:
        ProblemError: For messages in another order.
    """
    roles = [message["role"] for message in messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    expected = [("assistant", "user")[n % 2] for n in range(len(roles) - first)]
    if first == 0 or roles[first:] != expected or not expected:
        raise ProblemError(f"expected messages of user and assistant in turn, got {', '.join(roles)}", "messages")
    transcript = Transcript(GENERAL, chat.end_of_turn_id, name)
    read = chat.prompt(messages[:first])
    for message, counts in zip(messages[first:], trained[first:], strict=True):
        if message["role"] == "user":
            read = [*read, *chat.turn(message["content"])]
            continue
        written = chat.utterance(chat.answer_text(message["content"]))
        if counts:
            transcript.append_prompt(read)
            transcript.append_utterance(written)
            read = []
        else:
            read = [*read, *written]
    return transcript


def _rows(files: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
    for source in files:
        for file in find_files(source, "conversations"):
            for number, row in read_rows(file, ProblemError):
                yield file, number, row


def _conversation(row: Any, column: str | None) -> tuple[list[dict[str, str]], list[bool]]:
    """Return the messages of a row, and which of them count in the loss."""
    if not isinstance(row, dict):
        raise ProblemError(f"expected an object, got {type(row).__name__}")
    names = [column] if column is not None else [name for name in COLUMNS if row.get(name) is not None]
    if not names or row.get(names[0]) is None:
        raise ProblemError(f"expected a column {column or ' or '.join(COLUMNS)}, got {', '.join(map(str, row))}")
    given = messages_from_text(row[names[0]], names[0])
    if not isinstance(given, list):
        raise ProblemError(f"expected a list of messages, got {type(given).__name__}", names[0])
    messages, trained = [], []
    for message in given:  # one by one: an empty system message is left out
        read = read_messages([message], names[0], "user") if not _is_empty_system(message) else ()
        messages += [dict(part) for part in read]
        trained += [message.get("loss") is not False for _ in read]
    return messages, trained


def _is_empty_system(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    text = message.get("content") or message.get("value") or ""
    return "system" in (message.get("role"), message.get("from")) and not (isinstance(text, list) or text.strip())


def _beginning(transcript: Transcript, max_length: int) -> Transcript | None:
    """Return as many of the first turns as fit; None without any."""
    for number in range(transcript.num_decisions, 0, -1):
        if transcript.utterance_ends[number - 1] < max_length:
            return transcript.first_decisions(number).without_last_prompt()
    return None
