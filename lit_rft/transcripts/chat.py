"""How one tokenizer writes a conversation, one turn at a time.

Everything that a model reads or writes goes through a `ChatFormat`, as token ids. A conversation is a head (system
and first user turn, up to where the assistant starts to write), then utterances (each with its end-of-turn token) and
user turns in alternation. Appending turns gives the ids of the whole conversation rendered at once.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

_SYSTEM, _USER, _ASSISTANT = "@@system@@", "@@user@@", "@@assistant@@"


class ChatTemplateWarning(UserWarning):
    """The tokenizer's chat template cannot be used turn by turn; the plain format takes its place."""


class ChatFormat:
    """Token ids of heads, turns and utterances for one tokenizer.

    The tokenizer's chat template is used where it has one that appends: rendering more turns must never change what was
    rendered before. Without a template (or with one that rewrites history, with one warning) a plain
    `System: / User: / Assistant:` format is used, and the tokenizer's eos token ends an utterance.

    Args:
        tokenizer: a Hugging Face tokenizer with an eos token.
    Raises: ValueError if the tokenizer has no eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer needs an eos token to end utterances; got one without")
        self.tokenizer = tokenizer
        names = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
        # only markup is unsafe in content; added words such as plain numbers are left alone
        marks = sorted((n for n in names if not n.isalnum()), key=len, reverse=True)
        self._special = _any_of(marks)
        # an utterance may hold marks that end nothing (`</think>`), where the tokenizer does not call them special
        own = {str(t) for t in tokenizer.added_tokens_decoder.values() if not t.special}
        self._ends = _any_of([m for m in marks if m not in own])
        self._templated = False
        self.end_of_turn_id: int = tokenizer.eos_token_id
        self._after = ""
        if getattr(tokenizer, "chat_template", None):
            self._use_template()

    @property
    def uses_template(self) -> bool:
        """True if the tokenizer's own chat template is in use."""
        return self._templated

    def head(self, system: str, user: str) -> list[int]:
        """Ids from the start of the conversation to where the first utterance begins."""
        system, user = self._clean(system), self._clean(user)
        if self._templated:
            return self._encode(self._render(system, [user]))
        bos = [self.tokenizer.bos_token_id] if _adds_bos(self.tokenizer) else []
        return bos + self._encode(f"System: {system}\n\nUser: {user}\n\nAssistant:\n")

    def turn(self, user: str) -> list[int]:
        """Ids of a user turn after a finished utterance, to where the next utterance begins."""
        user = self._clean(user)
        if self._templated:
            return self._encode(self._after.replace(_USER, user))
        return self._encode(f"\n\nUser: {user}\n\nAssistant:\n")

    def prompt(
        self, messages: Sequence[dict[str, str]], *, template: str | None = None, opening: str = ""
    ) -> list[int]:
        """Ids of a whole conversation, to where the next utterance begins.

        Args:
            messages: with `role` and `content`; a system message joins the first user's where the template knows no
                such role.
            template: a Jinja template to use in place of the tokenizer's own.
            opening: what the utterance begins with already.
        """
        messages = [{"role": m["role"], "content": self._clean(m["content"])} for m in messages]
        if template is None and not self._templated:
            bos = [self.tokenizer.bos_token_id] if _adds_bos(self.tokenizer) else []
            text = "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in messages)
            return bos + self._encode(f"{text}Assistant:\n{opening}")
        if template is None and messages[0]["role"] == "system" and len(messages) > 1 and not self._knows_system():
            first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            messages = [{"role": "user", "content": first}, *messages[2:]]
        options = {} if template is None else {"chat_template": template}
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return self._encode(text + opening)

    def utterance(self, text: str) -> list[int]:
        """Ids of a written utterance, its end-of-turn token included."""
        return [*self._encode(_without(self._ends, text)), self.end_of_turn_id]

    def text(self, utterance_ids: list[int]) -> str:
        """What the ids of an utterance say, without its end-of-turn token and other special tokens."""
        return self.tokenizer.decode(utterance_ids, skip_special_tokens=True).strip()

    def _clean(self, content: str) -> str:
        """Content may not contain markup: an observation that says `<|im_end|>` must not end a turn."""
        return _without(self._special, content)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _render(self, system: str, users: list[str], utterances: tuple[str, ...] = ()) -> str:
        """The conversation as text, ready for the next utterance; the system text joins the first user
        turn where the template knows no system role."""
        messages = [{"role": "system", "content": system}]
        for index, user in enumerate(users):
            messages.append({"role": "user", "content": user})
            if index < len(utterances):
                messages.append({"role": "assistant", "content": utterances[index]})
        if not self._knows_system():
            first = {"role": "user", "content": f"{system}\n\n{users[0]}"}
            messages = [first, *messages[2:]]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _knows_system(self) -> bool:
        if not hasattr(self, "_system_role"):
            from jinja2 import TemplateError

            messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            try:
                self._system_role = _SYSTEM in self.tokenizer.apply_chat_template(messages, tokenize=False)
            except TemplateError:  # Gemma and others refuse the role in so many words
                self._system_role = False
        return self._system_role

    def _use_template(self) -> None:
        """Learn from probe conversations what the template writes between two utterances."""
        two = self._render(_SYSTEM, ["first", _USER], (_ASSISTANT,))
        after = two.split(_ASSISTANT)[-1]
        marks = [t for t in self.tokenizer.get_added_vocab() if after.startswith(t)]
        marks += [self.tokenizer.eos_token] if after.startswith(self.tokenizer.eos_token) else []
        if not marks or _USER not in after:
            self._warn("it closes the assistant's turn without a special token")
            return
        end = max(marks, key=len)
        self._after = after[len(end) :]
        joined = self._render(_SYSTEM, ["first"]) + "one" + end + self._after.replace(_USER, "second")
        joined += "two" + end + self._after.replace(_USER, "third")
        if joined != self._render(_SYSTEM, ["first", "second", "third"], ("one", "two")):
            self._warn("it rewrites earlier turns when a new one comes")
            return
        self.end_of_turn_id = self.tokenizer.convert_tokens_to_ids(end)
        self._templated = True
        pieces = self.head(_SYSTEM, "first") + self.utterance("one") + self.turn("second")
        if pieces != self._encode(self._render(_SYSTEM, ["first", "second"], ("one",))):
            # training and acting agree all the same: both put the same pieces together
            text = "this tokenizer writes a turn by itself with other tokens than in the middle of a conversation"
            warnings.warn(text, ChatTemplateWarning, stacklevel=3)

    def _warn(self, reason: str) -> None:
        warnings.warn(f"the tokenizer's chat template is not used: {reason}", ChatTemplateWarning, stacklevel=4)


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _any_of(marks: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(re.escape(mark) for mark in marks)) if marks else None


def _without(marks: re.Pattern[str] | None, text: str) -> str:
    while marks and marks.search(text):  # removing one mark may join the halves of another
        text = marks.sub("", text)
    return text.strip()
