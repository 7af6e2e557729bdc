"""GLIDER's second stage: offline hierarchical reinforcement learning."""

from lit_rft.batches import StepTranscripts
from lit_rft.stages.actor_critic import ActorCriticStage
from lit_rft.stages.data_check import STEPS


class OfflineHierarchicalRL(ActorCriticStage):
    r"""Actor and critics on stored episodes, expert ones and mediocre ones (GLIDER, ICML 2025, L_Q, L_V, L_pi).

    The high level earns the environment's reward over each subgoal, the low level an intrinsic one for completing it:
    equations and arguments in `ActorCriticStage`, rewards in the agent's `outcomes`. `FlatAgent` is the
    flat counterpart, advantage-weighted actor-critic (AWAC) on one transcript of actions.

    Deviations from the paper: L_V by default looks at the data's utterances and not at freshly sampled ones
    (`value_actions`), its expectile points upwards (see `expectile_value_loss`), heads per level
    (`critic.per_level`), and a low-level trajectory ends with its subgoal.
    """

    training_batch = STEPS

    def training_step(self, batch: StepTranscripts, batch_idx: int) -> None:
        self.check_batch(batch, self.training_batch)
        self.log_terms(self.update(self.step_batch(batch.transcripts, batch.num_utterances)))
