"""Prompts of single-turn problems, and their completions, as token ids."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_rft.transcripts.chat import ChatFormat
from lit_rft.transcripts.transcript import Transcript

THINK = "<think>\n"
NAMED = ("chat", "think")
COMPLETION = "completion"  # level of the transcripts of single-turn problems


class PromptFormat:
    """Format of prompts, by name.

    `chat`: the problem's messages through the tokenizer's chat template (a plain `Role: text` form without one).
    `think`: the same, and the completion begins inside an opened `<think>` (as in LUFFY's release, whose reward reads
    the text after `</think>`). Anything else is a Jinja chat template, rendered in transformers' sandbox.

    Args:
        tokenizer: a Hugging Face tokenizer with an eos token.
        template: `chat`, `think`, or a Jinja template.

    Raises:
        ValueError: For a template that is neither a name nor Jinja.
    """

    def __init__(self, tokenizer: Any, template: str = "chat") -> None:
        if template not in NAMED and "{" not in template:
            raise ValueError(f"prompt_template must be {' or '.join(NAMED)}, or a Jinja template, got {template!r}")
        self.chat = ChatFormat(tokenizer)
        self.template = template
        self.end_of_turn_id = self.chat.end_of_turn_id

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of the prompt, including the generation prompt."""
        jinja_template = None if self.template in NAMED else self.template
        return self.chat.prompt(messages, template=jinja_template, opening=THINK if self.template == "think" else "")

    @cached_property
    def _opens_thinking(self) -> bool:
        """True if a prompt ends inside an opened `<think>`, as the templates of some models do by themselves."""
        prompt = self.chat.tokenizer.decode(self.prompt_ids([{"role": "user", "content": "x"}]))
        return bool(prompt.rstrip().endswith(THINK.strip()))

    def completion_ids(self, text: str) -> list[int]:
        """Return the ids of a trace, including its end; a `<think>` opened by the prompt is not repeated."""
        if self._opens_thinking:
            text = text.lstrip().removeprefix("<think>").lstrip("\n")
        return self.chat.utterance(text)

    def text(self, completion_ids: list[int]) -> str:
        """Decode a completion; with `think`, the reasoning starts at its first token."""
        return self.chat.text(completion_ids)


def completion_transcript(name: str, prompt_ids: list[int], completion_ids: list[int], end_id: int) -> Transcript:
    """Make a transcript of one decision from a prompt and its completion."""
    transcript = Transcript(COMPLETION, end_id, name)
    transcript.append_prompt(prompt_ids)
    transcript.append_utterance(completion_ids)
    return transcript
