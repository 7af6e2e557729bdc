"""How one tokenizer writes a conversation, one turn at a time.

Everything that a model reads or writes goes through a `ChatFormat`, as token ids. A conversation is a head (system
and first user turn, up to where the assistant starts to write), then utterances (each with its end-of-turn token) and
user turns in alternation.

Content is never deleted or altered. Where it has the characters of a structural token (`<|im_end|>`), they become
ordinary text tokens: content can neither open nor end a turn. Two things are the model's own and stay so: a template
that strips the outer blanks of messages does so here, too, and so does a tokenizer that normalises its text (Qwen's
composes accents, for one).
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from lit_rft.transcripts.marks import Markup
from lit_rft.transcripts.templates import ChatTemplate, TurnForm, render


class ChatTemplateWarning(UserWarning):
    """The tokenizer's chat template renders a long conversation otherwise than turn by turn."""


class ChatFormat:
    """Token ids of heads, turns and utterances for one tokenizer.

    A first prompt is what the tokenizer's chat template renders, whatever the template. Later turns are appended in the
    form in which it renders the last one of a conversation, up to its generation prompt: a template that rewrites
    history when a new turn comes (that drops earlier thoughts, for instance) is not followed in that, with one warning,
    because what was read and written is not changed afterwards. Without a template a plain `System: / User: /
    Assistant:` format is used, and the tokenizer's eos token ends an utterance.

    Args:
        tokenizer: a Hugging Face tokenizer with an eos token.

    Raises:
        ValueError: If the tokenizer has no eos token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer needs an eos token to end utterances; got one without")
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self._markup = Markup(tokenizer, self._template.written if self._template else "")
        self._markups: dict[str, Markup] = {}  # of templates other than the tokenizer's own
        if self._template is None:
            self._form = TurnForm(tokenizer.eos_token, "\n\nUser: ", "\n\nAssistant:\n", strips=False)
        else:
            self._form = self._template.turn_form(self._markup)
        self.end_of_turn_id: int = tokenizer.convert_tokens_to_ids(self._form.end)
        self.end_ids: tuple[int, ...] = ()  # every token that ends an utterance, the end of turn first
        self.add_end_ids([self.end_of_turn_id, tokenizer.eos_token_id])
        # some tokenizers begin every text with a blank
        self._blank = self._decode(self._encode("x")).removesuffix("x")
        self._warned = False

    @property
    def uses_template(self) -> bool:
        """True if the tokenizer has a chat template, which is then in use."""
        return self._template is not None

    def add_end_ids(self, ids: Iterable[int]) -> None:
        """Let more tokens end an utterance (a model's own: see `models.model_end_ids`)."""
        self.end_ids = tuple(dict.fromkeys([*self.end_ids, *ids]))

    def head(self, system: str, user: str) -> list[int]:
        """Ids from the start of the conversation to where the first utterance begins."""
        return self.prompt([{"role": "system", "content": system}, {"role": "user", "content": user}])

    def turn(self, user: str) -> list[int]:
        """Ids of a user turn after a finished utterance, to where the next utterance begins."""
        if not self._warned and self._template is not None and self._template.rewrites(self._form):
            text = (
                "the tokenizer's chat template rewrites earlier turns when a new one comes; here they stay as they "
                "were read and written, and new turns are appended in the template's form"
            )
            warnings.warn(text, ChatTemplateWarning, stacklevel=2)
        self._warned = True
        # encoded behind the end of the utterance, as in the middle of a conversation
        ids = self._markup.encode(lambda contents: self._form.end + self._form.write(contents[0]), [user])
        if ids[:1] == [self.end_of_turn_id]:
            return ids[1:]
        return self._markup.encode(lambda contents: self._form.write(contents[0]), [user])

    def prompt(
        self, messages: Sequence[dict[str, str]], *, template: str | None = None, opening: str = ""
    ) -> list[int]:
        """Ids of a whole conversation, to where the next utterance begins.

        Args:
            messages: with `role` and `content`; a system message joins the first user's where the template knows no
                such role.
            template: a Jinja template to use in place of the tokenizer's own.
            opening: what the utterance begins with already; not written again where the template opens it itself.
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
        # a template may drop the thoughts of earlier answers, but nothing of what a model is told
        ids = markup.encode(write, contents, protected=[i for i, role in enumerate(roles) if role != "assistant"])
        return [self.tokenizer.bos_token_id, *ids] if plain and _adds_bos(self.tokenizer) else ids

    def _markup_of(self, template: str) -> Markup:
        if template not in self._markups:
            self._markups[template] = Markup(self.tokenizer, template)
        return self._markups[template]

    def utterance(self, text: str) -> list[int]:
        """Ids of a written utterance, its end-of-turn token included."""
        return [*self._encode(text), self.end_of_turn_id]

    def text(self, utterance_ids: Sequence[int]) -> str:
        """What the ids of an utterance say, without the token that ended it and other special tokens; marks of a
        thinking part are kept. For any text (in the tokenizer's normal form), `text(utterance(text)) == text`."""
        ids = list(utterance_ids)
        if ids and ids[-1] in self.end_ids:
            del ids[-1]
        return self._decode([i for i in ids if i not in self._markup.special_ids]).removeprefix(self._blank)

    def _encode(self, text: str) -> list[int]:
        return self._markup.encode(lambda contents: contents[0], [text])

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
