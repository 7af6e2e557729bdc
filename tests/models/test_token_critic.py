"""Low-rank Q over the vocabulary: equal to a dense product, one weight count for every vocabulary."""

import pytest
import torch

from lit_rft.models.token_critic import LowRankQ, TokenCritic, output_embedding
from lit_rft.testing import make_model


def random_head(size: int = 16, rank: int = 4) -> LowRankQ:
    torch.manual_seed(0)
    head = LowRankQ(size, rank, 0.5)
    torch.nn.init.normal_(head.up.weight)
    torch.nn.init.normal_(head.up.bias)
    return head


def test_q_of_the_vocabulary_is_that_of_each_token() -> None:
    head, hidden, embedding = random_head().requires_grad_(False), torch.randn(5, 16), torch.randn(11, 16)
    q = head.of_vocabulary(hidden, embedding)
    for k in range(5):
        inner = torch.relu(head.down.weight @ hidden[k] + head.down.bias)
        out = head.up.weight @ inner + head.up.bias
        for w in range(11):
            assert float(q[k, w]) == pytest.approx(float(0.5 * out[:-1] @ embedding[w] + out[-1]), abs=1e-4)
    tokens = torch.tensor([0, 3, 10, 3, 7])
    torch.testing.assert_close(head.of_tokens(hidden, embedding, tokens), q.gather(1, tokens[:, None]).squeeze(1))


@pytest.mark.parametrize(("size", "rank"), [(16, 4), (4096, 256)])
def test_the_number_of_weights_does_not_depend_on_the_vocabulary(size: int, rank: int) -> None:
    with torch.device("meta"):
        head, critic = LowRankQ(size, rank, 1.0), TokenCritic(size, rank, 1.0)
    number = (2 * size + 2) * rank + size + 1
    assert sum(p.numel() for p in head.parameters()) == number
    value = size * (size + 1) + size + 1
    assert sum(p.numel() for p in critic.parameters()) == 4 * number + value
    if size == 4096:  # four heads and V in float32, in place of four output layers for 150,000 tokens
        assert 4 * (4 * number + value) < 110e6 < 4 * 4 * size * 150_000 / 80


def test_values_are_zero_at_first_and_the_smaller_target_counts() -> None:
    model = make_model()
    embedding, hidden = output_embedding(model), torch.randn(3, 32)
    assert not embedding.requires_grad and embedding.shape == (272, 32)
    critic = TokenCritic(32, 4, 1.0)
    assert not critic.target_q_of_vocabulary(hidden, embedding).any() and not critic.v(hidden).any()
    with torch.no_grad():
        critic.target[0].up.bias[-1], critic.target[1].up.bias[-1] = 2.0, 3.0
    tokens = torch.tensor([1, 2, 3])
    assert critic.target_q(hidden, embedding, tokens).tolist() == [2.0] * 3
    assert all(not head.of_tokens(hidden, embedding, tokens).any() for head in critic.online_heads)
