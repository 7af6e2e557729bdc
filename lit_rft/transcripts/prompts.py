"""Prompts of single-turn problems, and completions to them, as token ids."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_rft.transcripts.chat import ChatFormat
from lit_rft.transcripts.transcript import Transcript

THINK = "<think>\n"
NAMED = ("chat", "think")


class PromptFormat:
    """Format of prompts, by name.

    `chat`: the problem's messages through the tokenizer's chat template (a plain `Role: text` form without one).
    `think`: the same, and the completion begins inside an opened `<think>` (LUFFY's release: its reward looks at what
    follows `</think>`). Anything else is a Jinja chat template of your own; it is rendered in transformers' sandbox.

    Args:
        tokenizer: a Hugging Face tokenizer with an eos token.
        template: `chat`, `think`, or a Jinja template.

    Raises:
        ValueError: For a template that is neither a name nor Jinja.
    """

    def __init__(self, tokenizer: Any, template: str = "chat") -> None:
        if template not in NAMED and "{" not in template:
            raise ValueError(f"prompt_template must be {' or '.join(NAMED)}, or a Jinja template; got {template!r}")
        self.chat = ChatFormat(tokenizer)
        self.template = template
        self.end_of_turn_id = self.chat.end_of_turn_id

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of the prompt, including the generation prompt."""
        jinja_template = None if self.template in NAMED else self.template
        return self.chat.prompt(messages, template=jinja_template, opening=THINK if self.template == "think" else "")

    @cached_property
    def _opens_thinking(self) -> bool:
        """Whether a prompt ends inside an opened `<think>`; the templates of some models do so themselves."""
        prompt = self.chat.tokenizer.decode(self.prompt_ids([{"role": "user", "content": "x"}]))
        return bool(prompt.rstrip().endswith(THINK.strip()))

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a trace, its end included; what the prompt has opened is not opened again."""
        if self._opens_thinking:
            text = text.lstrip().removeprefix("<think>").lstrip("\n")
        return self.chat.utterance(text)

    def text(self, completion_ids: list[int]) -> str:
        """Decode a completion; with `think`, the reasoning starts at its first token."""
        return self.chat.text(completion_ids)


def completion_transcript(name: str, prompt_ids: list[int], completion_ids: list[int], end_id: int) -> Transcript:
    """A prompt with one completion, as a transcript of one decision."""
    transcript = Transcript("flat", end_id, name)
    transcript.append_prompt(prompt_ids)
    transcript.append_utterance(completion_ids)
    return transcript
