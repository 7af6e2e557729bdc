"""The default model: its tokenizer and template turn by turn, and the ways it is computed."""

import warnings

import pytest
import torch

from lit_rft.generation.decoder import Decoder
from lit_rft.generation.recompute import make_decoder
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.models.accel import can_attend_blockwise, can_pack, can_share_prompts
from lit_rft.transcripts import ChatFormat


def test_smollm2_takes_the_fast_paths_in_bf16(caplog: pytest.LogCaptureFixture) -> None:
    """What it is tried on must not be beyond what it knows: there bf16 and float32 are worlds apart."""
    model = load_backbone("smollm2-135m-instruct", dtype=torch.bfloat16).eval()
    assert type(make_decoder(model, 2, 2)) is Decoder
    assert can_share_prompts(model) and can_pack(model) and can_attend_blockwise(model)
    assert not [record for record in caplog.records if record.name.startswith("lit_rft")]


def test_smollm2_turn_by_turn_equals_all_at_once() -> None:
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat = ChatFormat(tokenizer)
    assert chat.uses_template and chat.tokenizer.decode([chat.end_of_turn_id]) == "<|im_end|>"
    users = ["Task: find 42 a(n) plant.\n\n\tA door (that is closed)", "The door is now open.", "It's 12.5°C"]
    answers = ["open door to kitchen\ncontinue", "focus on adult apple tree\ndone"]
    messages = [{"role": "system", "content": "You act."}]
    ids = chat.head("You act.", users[0])
    for index, user in enumerate(users):
        messages.append({"role": "user", "content": user})
        if index < len(answers):
            messages.append({"role": "assistant", "content": answers[index]})
            ids += chat.utterance(answers[index]) + chat.turn(users[index + 1])
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
