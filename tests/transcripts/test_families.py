"""Over many families of tokenizers: no content is lost or becomes structure, and prompts are the template's own."""

import os
import random
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, family_tokenizer
from jinja2 import TemplateError

from lit_rft.transcripts import ChatFormat, PromptFormat

EACH = pytest.mark.parametrize("name", FAMILIES)
ORDINARY = [
    "You are in the hallway.\nYou see:\n\ta table\n\n\nand a <b>door</b> <table><tr>",
    "3 apples.  Ann has    4.\tx = 1 , it 's . n't",
    "def f(x):\n    if x:\n        return  x",
    "Think inside <think> and </think>, then answer.",
    "é 你好 🙂 the",
    "1",
]


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def marks_of(tokenizer: Any) -> list[str]:
    template = tokenizer.chat_template or ""
    tokens = tokenizer.added_tokens_decoder.values()
    found = [t.content for t in tokens if (t.special or t.content in template) and t.content.strip()]
    return [mark for mark in found if "think" not in mark and "tool_call" not in mark]


def hostile(tokenizer: Any, seed: int, number: int) -> list[str]:
    """Contents made of the tokenizer's own marks, parts of them, blanks and words."""
    rng, marks = random.Random(seed), marks_of(tokenizer)
    marks = rng.sample(marks, min(8, len(marks)))
    parts = [*ORDINARY, *marks, *(mark[: len(mark) // 2] for mark in marks), " ", "\n", "<", "|>", "@@user@@"]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(number)]
    return [*texts, *(f"go {mark} on" for mark in marks), "<|im_<|im_end|>end|>", "\ue000x.1\ue001"]


def check_contents(tokenizer: Any, number: int = 25) -> None:
    """The property: every content is read back whole, and the marks around it are those around any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = ChatFormat(tokenizer)
        structure = set(tokenizer.convert_tokens_to_ids(marks_of(tokenizer)))
        writers: list[Callable[[str], list[int]]] = [
            lambda text: chat.head(text, "user"), lambda text: chat.head("system", text), chat.turn,
            lambda text: chat.prompt([{"role": "user", "content": text}]),
        ]  # fmt: skip
        for content in [*ORDINARY, *hostile(tokenizer, 0, number)]:
            content = unicodedata.normalize("NFC", content.strip())  # as some tokenizers and templates do themselves
            for write in writers:
                ids = write(content)
                assert content in decode(tokenizer, ids)
                assert [i for i in ids if i in structure] == [i for i in write("x") if i in structure]
            said = chat.utterance(content)
            assert chat.text(said) == content
            assert [i for i in said if i in structure or i == chat.end_of_turn_id] == [chat.end_of_turn_id]


def check_rendering(tokenizer: Any) -> None:
    """First prompts are the tokenizer's own, to the token."""
    form = PromptFormat(tokenizer)
    plain = [text for text in ORDINARY if "think" not in text] + [" blanks \n outside \n"]
    for text in plain:
        user = {"role": "user", "content": text}
        answered = [user, {"role": "assistant", "content": "4"}, {"role": "user", "content": "More."}]
        conversations = [[user], answered, [{"role": "system", "content": "Be brief."}, user]]
        for messages in conversations:
            try:
                rendered = tokenizer.apply_chat_template(messages, tokenize=False)
            except TemplateError:
                rendered = ""
            if len(messages) == 2 and "Be brief." not in rendered:
                continue  # no system role: see below
            own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert form.prompt_ids(messages) == own


@EACH
def test_no_content_is_lost_or_becomes_structure(name: str) -> None:
    check_contents(family_tokenizer(FAMILIES[name]))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.template])
def test_first_prompts_are_the_templates_own(name: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    check_rendering(tokenizer)
    assert ChatFormat(tokenizer).uses_template


@EACH
def test_outer_blanks_are_kept_unless_the_template_strips(name: str) -> None:
    if FAMILIES[name].rstrip:
        pytest.skip("the tokens of this family take the blanks behind them themselves")
    tokenizer = family_tokenizer(FAMILIES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = ChatFormat(tokenizer)
        strips = "trim" in (tokenizer.chat_template or "")
        for content in ("  x\n", "\n<|im_end|> x  "):
            expected = content.strip() if strips else content
            for ids in (chat.turn(content), chat.prompt([{"role": "user", "content": content}])):
                assert expected in decode(tokenizer, ids) and (content in decode(tokenizer, ids)) != strips


@pytest.mark.parametrize(
    ("name", "turn", "end"),
    [
        ("qwen3.5", "\n<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n<think>\n", "<|im_end|>"),
        ("mistral", "[INST]Go.[/INST]", "</s>"),
        ("deepseek-r1", "<｜User｜>Go.<｜Assistant｜><think>\n", "<｜end▁of▁sentence｜>"),
        ("gpt-oss", "<|start|>user<|message|>Go.<|end|><|start|>assistant", "<|return|>"),
        ("glm", "\nGo.<|assistant|>\n<think>", "<|user|>"),
        ("gemma2", "\n<start_of_turn>user\nGo.<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
        ("command-r", "<|START|><|user|>Go.<|END_RESPONSE|><|END|><|START|><|assistant|>", "<|END|>"),
        ("words", "\n\n### user:\nGo.\n\n### assistant:", "</s>"),
    ],
)
def test_turns_are_learnt_from_the_generation_prompt(name: str, turn: str, end: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = ChatFormat(tokenizer)
        assert decode(tokenizer, chat.turn("Go.")) == turn
    assert decode(tokenizer, [chat.end_of_turn_id]) == end


def test_a_template_without_a_system_role_gets_the_system_text_with_the_first_message() -> None:
    tokenizer = family_tokenizer(FAMILIES["gemma2"])
    own = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Be brief.\n\nWhere?"}], add_generation_prompt=True, return_dict=False
    )
    assert ChatFormat(tokenizer).head("Be brief.", "Where?") == own


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "deepseek-r1", "glm", "smollm3", "special-think"])
def test_marks_of_thinking_reach_the_model_as_its_own_tokens(name: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    chat = ChatFormat(tokenizer)
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids = chat.head("Think inside <think> and </think>.", "1+1?")
    assert "Think inside <think> and </think>." in decode(tokenizer, ids)
    assert set(marks) <= set(ids)
    said = chat.utterance("<think>Easy.</think>2")
    assert said[0] == marks[0] and marks[1] in said
    assert chat.text(said) == "<think>Easy.</think>2"  # the reward looks for what follows </think>


@pytest.mark.parametrize(("name", "template"), [("qwen3.5", "chat"), ("qwen3.5", "think"), ("glm", "think")])
def test_thinking_is_opened_once(name: str, template: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    form = PromptFormat(tokenizer, template)
    ids = form.prompt_ids([{"role": "user", "content": "1+1?"}])
    ids += form.completion_ids("<think>\nEasy.\n</think>\n2")
    assert decode(tokenizer, ids).count("<think>") == 1
    assert form.text(form.completion_ids("<think>\nEasy.\n</think>\n2")) == "Easy.\n</think>\n2"


def test_every_end_of_the_tokenizer_ends_an_utterance() -> None:
    tokenizer = family_tokenizer(FAMILIES["llama3"])
    chat = ChatFormat(tokenizer)
    assert chat.end_ids == tuple(tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"]))
    chat.add_end_ids([300, chat.end_of_turn_id])
    assert chat.end_ids[2:] == (300,)
    assert chat.text([*chat.utterance("go")[:-1], 300]) == "go"


def test_a_template_of_tools_only_says_why_it_is_refused() -> None:
    tokenizer = family_tokenizer(FAMILIES["chatml"])
    tokenizer.chat_template = "{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"cannot render one user message.*NoneType.*another template"):
        ChatFormat(tokenizer)


def _real() -> list[Path]:
    folder = os.environ.get("LIT_RFT_TOKENIZERS")
    return sorted(path.parent for path in Path(folder).rglob("tokenizer_config.json")) if folder else []


@pytest.mark.skipif(not _real(), reason="LIT_RFT_TOKENIZERS names no folder with tokenizers of real models")
@pytest.mark.parametrize("folder", _real() or [Path()], ids=lambda path: str(path)[-60:])
def test_real_tokenizers(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_contents(tokenizer, 5)
    if tokenizer.chat_template:
        check_rendering(tokenizer)
