"""The format of conversations for one tokenizer, one turn at a time.

Everything that a model reads or writes goes through a `ChatFormat`, as token ids. A conversation is a head (system
and first user turn, up to the first utterance), then utterances (each with its end-of-turn token) and user turns in
alternation.

Content is never deleted or altered. Where it contains the characters of a structural token (`<|im_end|>`), they become
ordinary text tokens: content can neither open nor end a turn. There are two exceptions: a template that strips the
outer blanks of messages does so here, too, and so does a tokenizer that normalises its text (Qwen's composes accents,
for example).
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from lit_rft.transcripts.marks import Markup
from lit_rft.transcripts.templates import ChatTemplate, TurnForm, render
from lit_rft.transcripts.thoughts import ThoughtMarks


class ChatTemplateWarning(UserWarning):
    """The tokenizer's chat template renders a long conversation differently than turn by turn."""


class ChatFormat:
    """Token ids of heads, turns and utterances for one tokenizer.

    The first prompt is the rendering of the tokenizer's chat template. Later turns have the form of the last turn of a
    conversation, up to the generation prompt. A template that rewrites history when a turn is added (by dropping
    earlier thoughts, for example) is not followed in that, with one warning: tokens are not changed after they were
    read or written. Without a template a plain `System: / User: / Assistant:` format is used, and the tokenizer's eos
    token ends an utterance.

    Args:
        tokenizer: a Hugging Face tokenizer with an eos token.

    Raises:
        ValueError: If the tokenizer has no eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "expected a tokenizer with an eos token to end utterances, got one without: set tokenizer.eos_token"
            )
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self._markup = Markup(tokenizer, self._template.written if self._template else "")
        self._markups: dict[str, Markup] = {}  # of templates other than the tokenizer's
        if self._template is None:
            self._form = TurnForm(tokenizer.eos_token, "\n\nUser: ", "\n\nAssistant:\n", strips=False)
        else:
            self._form = self._template.turn_form(self._markup)
        self.end_of_turn_id: int = tokenizer.convert_tokens_to_ids(self._form.end)
        self.end_ids: tuple[int, ...] = ()  # every token that ends an utterance, the end of turn first
        self.add_end_ids([self.end_of_turn_id, tokenizer.eos_token_id])
        # some tokenizers add a blank in front of every text
        self._blank = self._decode(self._encode("x")).removesuffix("x")
        history = self._template.before_earlier_answer if self._template else ""
        self.thoughts = ThoughtMarks.learn(self._form.after, history, self._encode, self._decode)
        self._warned = False

    def at(self, level: str) -> "ChatFormat":
        """Return the chat format of an agent's level: this one (see `LevelFormats`)."""
        return self

    @property
    def uses_template(self) -> bool:
        """True if the tokenizer has a chat template, which is then used."""
        return self._template is not None

    def add_end_ids(self, ids: Iterable[int]) -> None:
        """Add tokens that end an utterance (the model's: see `models.model_end_ids`)."""
        self.end_ids = tuple(dict.fromkeys([*self.end_ids, *ids]))

    def head(self, system: str, user: str) -> list[int]:
        """Return the ids from the start of the conversation up to the first utterance."""
        return self.prompt([{"role": "system", "content": system}, {"role": "user", "content": user}])

    def turn(self, user: str) -> list[int]:
        """Return the ids of a user turn after a finished utterance, up to the next utterance."""
        if not self._warned and self._template is not None and self._template.rewrites(self._form):
            text = (
                "the tokenizer's chat template rewrites earlier turns when a new one comes; here they stay as they "
                "were read and written, and new turns are appended in the template's form"
            )
            warnings.warn(text, ChatTemplateWarning, stacklevel=2)
        self._warned = True
        # encode after the end of the utterance, as in the middle of a conversation
        ids = self._markup.encode(lambda contents: self._form.end + self._form.write(contents[0]), [user])
        if ids[:1] == [self.end_of_turn_id]:
            return ids[1:]
        return self._markup.encode(lambda contents: self._form.write(contents[0]), [user])

    def prompt(
        self, messages: Sequence[dict[str, str]], *, template: str | None = None, opening: str = ""
    ) -> list[int]:
        """Return the ids of a conversation, up to the next utterance.

        Args:
            messages: with `role` and `content`; a system message joins the first user message if the template has no
                such role.
            template: a Jinja template to use in place of the tokenizer's.
            opening: text that begins the utterance; not repeated if the template writes it itself.
        """
        if self._template is not None and template is None:
            messages = self._template.with_known_roles(messages)
        plain = self._template is None and template is None

        def write(contents: Sequence[str]) -> str:
            filled = [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]
            if not plain:
                text = render(self.tokenizer, filled, template=template)
                return text if opening and text.rstrip().endswith(opening.strip()) else text + opening
            turns = "".join(f"{message['role'].capitalize()}: {message['content']}\n\n" for message in filled)
            return f"{turns}Assistant:\n{opening}"

        markup = self._markup if template is None else self._markup_of(template)
        contents, roles = [message["content"] for message in messages], [message["role"] for message in messages]
        # a template may drop the thoughts of earlier answers, but nothing from instructions
        ids = markup.encode(write, contents, protected=[i for i, role in enumerate(roles) if role != "assistant"])
        return [self.tokenizer.bos_token_id, *ids] if plain and _adds_bos(self.tokenizer) else ids

    def _markup_of(self, template: str) -> Markup:
        if template not in self._markups:
            self._markups[template] = Markup(self.tokenizer, template)
        return self._markups[template]

    def utterance(self, text: str) -> list[int]:
        """Return the ids of a written utterance, including its end-of-turn token."""
        return [*self._encode(text), self.end_of_turn_id]

    def text(self, utterance_ids: Sequence[int]) -> str:
        """Decode an utterance without its end token and other special tokens; marks of a thinking part are kept.

        For any text (in the tokenizer's normal form), `text(utterance(text)) == text`.
        """
        ids = list(utterance_ids)
        if ids and ids[-1] in self.end_ids:
            del ids[-1]
        return self._decode([i for i in ids if i not in self._markup.special_ids]).removeprefix(self._blank)

    def answer(self, text: str) -> str | None:
        """Return an utterance's text without its thought; None if the thought never ends."""
        return self.thoughts.answer(text)

    def answer_text(self, answer: str, thought: str = "") -> str:
        """Return the text of an utterance with an answer: behind the end of a thought, where the template opens one."""
        return self.thoughts.write(thought, answer) if self.thoughts.opening else answer

    def answer_ids(self, utterance_ids: Sequence[int]) -> list[int]:
        """Return the ids of an utterance without its thought, as a history without thoughts has them."""
        return self.thoughts.answer_ids(utterance_ids, self.end_ids) or [self.end_of_turn_id]

    def _encode(self, text: str) -> list[int]:
        return self._markup.encode(lambda contents: contents[0], [text])

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
