"""A small untrained model with a tokenizer for given texts."""

import string
from pathlib import Path

import pytest
import torch

from lit_rft.models import load_backbone, load_tokenizer, save_scratch_model
from lit_rft.transcripts import ChatFormat

TEXTS = ["You have no key. The key is to the north.", "take", "It costs 57."] * 3
SIZES = {"hidden_size": 16, "layers": 1, "heads": 2}


def test_words_and_numbers_of_the_texts_are_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_scratch_model(tmp_path, TEXTS, **SIZES)))
    assert tokenizer.tokenize("take the key") == ["take", "Ġthe", "Ġkey"]
    assert tokenizer.tokenize("take 57") == ["take", "Ġ57"]
    chat = ChatFormat(tokenizer)
    for text in ("take", "north 12", "unseen: häuser\n\n  日本", string.printable):
        assert chat.text(chat.utterance(text)) == text
    head = tokenizer.decode(chat.head("Act.", "take"))
    assert head == "<|system|>Act.<|end|><|user|>take<|end|><|assistant|>"
    assert chat.end_ids == (tokenizer.convert_tokens_to_ids("<|end|>"),)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        model = load_backbone(str(save_scratch_model(tmp_path / name, TEXTS, seed=seed, **SIZES)))
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights("first", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights("again", 0), first)
    assert not torch.equal(weights("other", 1), first)


@pytest.mark.parametrize("sizes", [{"vocab_size": 260}, {"layers": 0}, {"hidden_size": 10, "heads": 4}])
def test_sizes_out_of_range(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected layers|vocab_size must be at least 261"):
        save_scratch_model(tmp_path, TEXTS, **sizes)
