"""The text of a tokenizer's chat template around the turns of a conversation, learnt from probe conversations."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_rft.transcripts.marks import Markup

Messages = Sequence[dict[str, str]]

_SYSTEM, _USER, _ASSISTANT = "@@system@@", "@@user@@", "@@assistant@@"


def render(tokenizer: Any, messages: Messages, *, template: str | None = None) -> str:
    """Render a conversation, ready for the next utterance, with the tokenizer's chat template or another one."""
    options = {} if template is None else {"chat_template": template}
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)
    return text


class TurnForm(NamedTuple):
    """The form of a turn after an utterance."""

    end: str  # the token that ends an utterance
    before: str  # between it and the user's text
    after: str  # between the user's text and the next utterance
    strips: bool  # whether the template strips the outer blanks of a user's text

    def write(self, user: str) -> str:
        return self.before + (user.strip() if self.strips else user) + self.after


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._knows_system: bool | None = None
        self._refusal = "it leaves the message out"
        first, answer = {"role": "user", "content": "first"}, {"role": "assistant", "content": _ASSISTANT}
        # outer blanks: to see whether the template strips them
        second = {"role": "user", "content": f" \n{_USER}\n "}
        self._finished = self._try([first, answer], generation=False)
        self._continued = self._try([first, answer, second])
        self._single = self._try([second])

    @property
    def written(self) -> str:
        """Source and renderings: the text to search for structural tokens."""
        # a tokenizer may have several templates by name
        source = self._tokenizer.chat_template
        sources = [source] if isinstance(source, str) else list(source.values())
        return "\n".join([*sources, self._finished, self._continued, self._single])

    def with_known_roles(self, messages: Messages) -> list[dict[str, str]]:
        """Return the messages; without a system role in the template, the system text joins the first user message."""
        if len(messages) < 2 or messages[0]["role"] != "system" or self.knows_system():
            return list(messages)
        return [{**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]

    def knows_system(self) -> bool:
        """Return whether a system message reaches the rendering."""
        if self._knows_system is None:
            probe = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            self._knows_system = _SYSTEM in self._try(probe)  # Gemma and others raise an error for this role
        return self._knows_system

    def turn_form(self, markup: Markup) -> TurnForm:
        """Learn the end of an utterance and the text that follows it.

        Raises:
            ValueError: For a template that renders none of the probe conversations.
        """
        eos: str = self._tokenizer.eos_token
        following = self._continued.rpartition(_ASSISTANT)[2] if _ASSISTANT in self._continued else ""
        finished = self._finished.rpartition(_ASSISTANT)[2] if _ASSISTANT in self._finished else ""
        if eos in markup.leading(following.lstrip()):
            end = eos  # also after other marks at the end of an answer
        else:
            end = markup.first(finished.lstrip()) or markup.first(following.lstrip()) or eos
        if _USER not in following:
            # the end of a finished answer, then the beginning of a conversation
            following = finished.partition(end)[2] + self._single.removeprefix(self._tokenizer.bos_token or "")
        if _USER not in following:
            raise ValueError(
                f"the tokenizer's chat template cannot render one user message ({self._refusal}): use "
                "a tokenizer with another template, or with none"
            )
        before, _, after = following.partition(_USER)
        strips = not before.endswith(" \n")
        if not strips:
            before, after = before.removesuffix(" \n"), after.removeprefix("\n ")
        return TurnForm(end, _without_end(before, end, after, markup), after, strips)

    @property
    def before_earlier_answer(self) -> str:
        """Text of the template between a user message and an answer that is not the last."""
        before, answer, _ = self._continued.partition(_ASSISTANT)
        return before.rpartition("first")[2] if answer else ""

    def rewrites(self, form: TurnForm) -> bool:
        """Return whether the template renders earlier turns in another form than new ones."""
        words = ["first", "one", "second", "two", "third"]
        roles = ["user", "assistant"] * 2 + ["user"]
        messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        appended = self._try(messages[:1]) + "one" + form.end + form.write("second") + "two" + form.end
        return appended + form.write("third") != self._try(messages)

    def _try(self, messages: Messages, *, generation: bool = True) -> str:
        """Render a probe; empty if the template raises any error (templates are data)."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:
            self._refusal = f"{type(error).__name__}: {error}"
            return ""
        return text


def _without_end(before: str, end: str, after: str, markup: Markup) -> str:
    """Return the text after the end of an utterance.

    A template may end earlier utterances with another token than the last one (the token that also ends the user's
    turns).
    """
    stripped = before.lstrip()
    marks = markup.leading(stripped)
    if end in marks:
        return stripped[len("".join(marks[: marks.index(end) + 1])) :]
    if marks and marks[0] == markup.first(after.lstrip()):
        return stripped.removeprefix(marks[0])
    return before
