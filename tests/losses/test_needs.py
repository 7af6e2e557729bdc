"""What a loss needs of its stage: declared by each loss, forwarded by every loss around another, checked when built."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from grpo_stage import make_grpo, make_prompts
from torch import Tensor

import lit_rft.losses
from lit_rft import GRPO, PPO, MixedPolicyGRPO, SamplingSettings
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import ServerSettings
from lit_rft.losses import CHORD, CISPO, GSPO, HPT, SRFT, PrefixRFT, RLPlus, SamplerCorrected, TwoSidedClip
from lit_rft.objectives import Sums
from lit_rft.rollouts import LossNeeds, MixedPolicyLoss, Normalizer, RolloutBatch, needs_of
from lit_rft.stages import AnsweringSettings, ObjectiveSettings
from lit_rft.testing.tiny_stage import fit

FIELDS = [field.name for field in dataclasses.fields(LossNeeds)]


@dataclasses.dataclass(frozen=True)
class Declaring:
    """A loss of the user's own that needs anything."""

    needs: LossNeeds

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        return log_probs.sum() * 0, {}


def plain(log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
    return log_probs.sum() * 0, {}


def all_losses() -> list[Any]:
    classes = [getattr(lit_rft.losses, name) for name in lit_rft.losses.__all__]
    return [cls for cls in classes if "rollouts" in inspect.signature(cls.__call__).parameters]


WRAPPERS = [cls for cls in all_losses() if "loss" in inspect.signature(cls).parameters]
INNER = [
    *(cls() for cls in all_losses()), MixedPolicyLoss(), MixedPolicyLoss(importance_cap=2.0), plain,
    *(Declaring(LossNeeds(**{name: True})) for name in FIELDS),
]  # fmt: skip


def name_of(loss: Any) -> str:
    if isinstance(loss, Declaring):
        return "-".join(name for name in FIELDS if getattr(loss.needs, name))
    cap = "-capped" if isinstance(loss, MixedPolicyLoss) and loss.importance_cap else ""
    return getattr(loss, "__name__", type(loss).__name__) + cap


def test_the_losses_around_others_are_found() -> None:
    assert {CHORD, HPT, SRFT, SamplerCorrected} <= set(WRAPPERS) and len(INNER) > 15


@pytest.mark.parametrize("inner", INNER, ids=name_of)
@pytest.mark.parametrize("wrapper", WRAPPERS, ids=name_of)
def test_a_loss_around_another_adds_its_needs(wrapper: Any, inner: Any) -> None:
    without = needs_of(wrapper(loss=plain))
    assert needs_of(wrapper(loss=inner)) == without | needs_of(inner)
    for outer in WRAPPERS:
        assert needs_of(outer(loss=wrapper(loss=inner))) == needs_of(outer(loss=plain)) | without | needs_of(inner)


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        (plain, LossNeeds()), (MixedPolicyLoss(), LossNeeds()),
        (MixedPolicyLoss(importance_cap=2.0), LossNeeds(sampler_log_probs=True)),
        (SamplerCorrected(), LossNeeds(sampler_log_probs=True)),
        (HPT(), LossNeeds(imitated_traces=True)), (CHORD(), LossNeeds(imitated_traces=True)),
        (SRFT(), LossNeeds(entropy=True, imitated_traces=True, group_traces=True)),
        (PrefixRFT(), LossNeeds(entropy=True, group_traces=True)), (RLPlus(), LossNeeds(group_traces=True)),
        (GSPO(), LossNeeds(no_group_traces=True)),
        (CISPO(), LossNeeds(no_group_traces=True)), (TwoSidedClip(), LossNeeds(no_group_traces=True)),
    ],
    ids=lambda value: "" if isinstance(value, LossNeeds) else name_of(value),
)  # fmt: skip
def test_what_each_loss_needs(loss: Any, needs: LossNeeds) -> None:
    assert needs_of(loss) == needs


CORRECTED = [MixedPolicyLoss(importance_cap=2.0), SamplerCorrected()]


@pytest.mark.parametrize("inner", CORRECTED, ids=name_of)
@pytest.mark.parametrize("wrapper", WRAPPERS, ids=name_of)
def test_importance_weights_within_a_loss_are_refused_with_a_servers_top_p(wrapper: Any, inner: Any) -> None:
    objective = ObjectiveSettings(traces_per_group=1, imitated_traces=1)
    options = {"objective": objective, "answering": AnsweringSettings(server=ServerSettings())}
    MixedPolicyGRPO(sampling=SamplingSettings(8, 1.0), loss=wrapper(loss=inner), **options)
    with pytest.raises(ValueError, match="needs the probabilities before top-k and top-p"):
        MixedPolicyGRPO(sampling=SamplingSettings(8, 1.0, top_p=0.9), loss=wrapper(loss=inner), **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SamplerCorrected(), "PPO keeps no log-probabilities of the sampler, which SamplerCorrected needs"),
        (HPT(), "PPO has neither traces nor entropies, which HPT needs"),
        (RLPlus(), "PPO has neither traces nor entropies, which RLPlus needs"),
        (Declaring(LossNeeds(entropy=True)), "PPO has neither traces nor entropies, which Declaring needs"),
    ],
    ids=name_of,
)
def test_ppo_refuses_losses_that_need_what_it_does_not_have(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO(loss=loss)


@pytest.mark.parametrize("loss", [GSPO(), CISPO(), TwoSidedClip(), MixedPolicyLoss()], ids=name_of)
def test_ppo_takes_losses_without_traces(loss: Any) -> None:
    assert PPO(loss=loss).update.policy_loss is loss


@pytest.mark.parametrize(
    ("loss", "objective", "message"),
    [
        (HPT(), {"traces_per_group": 0}, "HPT imitates traces .*: set objective.imitated_traces to 1 or more"),
        (CHORD(), {"traces_per_group": 0}, "CHORD imitates traces .*: set objective.imitated_traces to 1 or more"),
        (SRFT(), {"traces_per_group": 1}, "SRFT imitates traces .*: set objective.imitated_traces to 1 or more"),
        (SRFT(), {"imitated_traces": 1}, "SRFT needs traces in the groups: set objective.traces_per_group to 1 or m"),
        (CHORD(loss=SRFT()), {"imitated_traces": 1}, "CHORD needs traces in the groups"),
        (RLPlus(), {}, "RLPlus needs traces in the groups"),
        (GSPO(), {"traces_per_group": 1}, "GSPO has no term for traces: set objective.traces_per_group to 0, got 1"),
        (SamplerCorrected(CISPO()), {"traces_per_group": 2}, "SamplerCorrected has no term for traces"),
        (SRFT(loss=GSPO()), {"traces_per_group": 1, "imitated_traces": 1}, "SRFT needs traces .* exchange it"),
    ],
    ids=lambda value: name_of(value) if callable(value) else "",
)  # fmt: skip
def test_an_objective_without_what_the_loss_needs_is_refused(loss: Any, objective: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPO(objective=ObjectiveSettings(**objective), loss=loss)


def without_normalizer(log_probs: Any, rollouts: Any) -> Any:
    return log_probs.sum(), {}


@pytest.mark.parametrize("stage", [GRPO, PPO])
def test_a_loss_with_other_arguments_is_refused(stage: Any) -> None:
    with pytest.raises(ValueError, match=r"without_normalizer must be callable with \(log_probs, rollouts, .* got an"):
        stage(loss=without_normalizer)


def test_a_loss_without_diagnostics_says_so(tiny_model_folder: Path) -> None:
    def only_a_tensor(log_probs: Any, rollouts: Any, *, normalizer: Any) -> Any:
        return log_probs.sum()

    stage = make_grpo(tiny_model_folder, loss=only_a_tensor)
    with pytest.raises(TypeError, match=r"only_a_tensor must return a scalar .* of diagnostics, got tensor \[\]"):
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)


def test_a_likelihood_term_counts_as_imitated_traces() -> None:
    GRPO(objective=ObjectiveSettings(sft_coef=1.0), loss=CHORD())


class Watching(SRFT):
    """Keeps whether each micro-batch had entropies, with the needs of SRFT or of none."""

    def __init__(self, declares: bool) -> None:
        super().__init__()
        self.declares, self.had_entropy = declares, set[bool]()

    @property
    def needs(self) -> LossNeeds:
        return super().needs if self.declares else LossNeeds()

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        self.had_entropy.add(rollouts.entropy is not None)
        return log_probs.sum() * 0, {}


@pytest.mark.parametrize("declares", [True, False])
def test_entropies_reach_a_loss_within_another_that_needs_them(declares: bool, tiny_model_folder: Path) -> None:
    watching = Watching(declares)
    objective = {"traces_per_group": 1, "imitated_traces": 1, "entropy_coef": 0.0}
    stage = make_grpo(tiny_model_folder, objective=objective, loss=CHORD(loss=SamplerCorrected(watching)))
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)
    assert watching.had_entropy == {declares}
