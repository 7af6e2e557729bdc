"""Settings of token-level critics, and the critics as a part of a stage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lit_rft.models.backbone import state_size
from lit_rft.models.token_critic import TokenCritic, output_embedding
from lit_rft.stages.core.checkpoints import check_complete
from lit_rft.stages.core.parts import WeightPart


@dataclass(frozen=True)
class TokenCriticSettings:
    """Settings of ILQL's critics (Snell et al. 2023, arXiv 2206.11871; defaults of LMRL-Gym where they differ).

    Args:
        learning_rate: of the critics, > 0.
        rank: of the Q heads on the output embedding, >= 1.
        discount: in [0, 1].
        discount_each: `token` (the paper), or `step` of the environment: tokens of an utterance then pass no time.
        expectile: of V, in (0, 1).
        conservative_coef: weight of the term that lowers Q of tokens outside the data, >= 0; 0 also saves computing Q
            of the vocabulary.
        polyak_rate: share by which the target Q follow at each optimiser step, in [0, 1].
        gradients: let the critics' losses train the policy's weights, too, as in the paper, where heads and policy
            share a transformer; false keeps them from it.
    """

    learning_rate: float = 1e-4
    rank: int = 256
    discount: float = 0.99
    discount_each: Literal["token", "step"] = "token"
    expectile: float = 0.7
    conservative_coef: float = 0.01
    polyak_rate: float = 0.005
    gradients: bool = False

    def __post_init__(self) -> None:
        for name in ("discount", "polyak_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"critic.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.expectile < 1:
            raise ValueError(f"critic.expectile must be in (0, 1), got {self.expectile}")
        if self.rank < 1:
            raise ValueError(f"critic.rank must be >= 1, got {self.rank}")
        if not self.learning_rate > 0 or not self.conservative_coef >= 0:
            raise ValueError(
                f"critic.learning_rate must be > 0 and conservative_coef >= 0, got {self.learning_rate} and "
                f"{self.conservative_coef}"
            )
        if self.discount_each not in ("token", "step"):
            raise ValueError(f"critic.discount_each must be token or step, got {self.discount_each!r}")


class TokenCritics(WeightPart):
    """Token-level critics, added to a stage as `token_critic`.

    Args:
        settings: of the critics.
    """

    def __init__(self, settings: TokenCriticSettings) -> None:
        self.settings = settings
        self.critic: TokenCritic | None = None

    def add(self, stage: Any) -> None:
        if stage.precision == "bf16-true":
            raise ValueError("precision bf16-true would keep the critics' values in three digits: use bf16-mixed")
        size = state_size(stage.policy)
        norm = output_embedding(stage.policy).float().square().sum(1).mean().sqrt()
        self.critic = TokenCritic(size, self.settings.rank, 1 / max(float(norm), 1e-6))
        stage.token_critic = self.critic

    def saved_names(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith("token_critic.target.")]

    def load(self, stage: Any, weights: Mapping[str, Tensor], source: str) -> None:
        critic = {name: value for name, value in weights.items() if name.startswith("token_critic.")}
        if critic:
            names = [name for name, _ in stage.named_parameters() if name.startswith("token_critic.")]
            check_complete(critic, names, source)
            stage.load_state_dict(critic, strict=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.critic is not None
        parameters = [*self.critic.online.parameters(), *self.critic.value.parameters()]
        return [{"params": parameters, "lr": self.settings.learning_rate, "name": "critic"}]
