"""Whether the data are those that a stage can learn from: refused before the first step where they are not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.models.backbone import causal_lm
from lit_rft.stages.optimization import OptimizedModule
from lit_rft.transcripts import Transcript
from lit_rft.transcripts.fingerprint import tokenizer_fingerprint


@dataclass(frozen=True)
class BatchKind:
    """A kind of batch, as data loaders give it. Any object with its attributes will do.

    Args:
        name: of the class.
        attributes: what a stage reads of it.
        data_module: the data module that gives it.
    """

    name: str
    attributes: tuple[str, ...]
    data_module: str


STEPS = BatchKind("StepTranscripts", ("transcripts", "num_utterances"), "TrajectoryDataModule")
ROUNDS = BatchKind("OnlineBatch", ("jobs", "offline"), "OnlineDataModule")
GROUPS = BatchKind("EpisodeGroupBatch", ("groups", "jobs"), "EpisodeGroupDataModule")
PROMPTS = BatchKind("PromptBatch", ("prompts", "sources"), "MathPromptDataModule")
EPISODES = BatchKind("EpisodeJobs", ("jobs", "make_env", "tasks"), "TrajectoryDataModule")


class DataCheckedModule(OptimizedModule):
    """Refuses batches and data modules of another kind, agent or tokenizer than the stage's.

    Data modules are checked as a whole before training begins, as far as they describe themselves (`training_batch`,
    `evaluation_batch`, `agent`, `tokenizer`); the batches of any data loader as they come.
    """

    training_batch: BatchKind | None = None
    evaluation_batch: BatchKind | None = None
    _checked_offline = 0
    policy: Any
    chat: Any
    policy_settings: Any

    # --- data modules ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Raises: ValueError for a data module that gives other batches than this stage needs, or another agent."""
        data = getattr(self.trainer, "datamodule", None)
        kinds = {"evaluation_batch": self.evaluation_batch}
        if stage == "fit":
            kinds["training_batch"] = self.training_batch
        for attribute, kind in kinds.items():
            given = getattr(data, attribute, None)
            if kind is not None and given not in (None, kind.name):
                raise ValueError(
                    f"{type(self).__name__} needs a data module that gives {kind.name}, as {kind.data_module} does: "
                    f"got {type(data).__name__}, which gives {given}"
                )
        if stage == "fit":
            given, own = getattr(data, "agent", None), getattr(self, "agent", None)
            if given is not None and own is not None and given != own:
                raise ValueError(
                    f"the agent must be the same for stage and data module: {type(self).__name__} has {own}, "
                    f"{type(data).__name__} has {given}; leave out the data module's, and it takes the stage's"
                )

    def check_tokenizer(self) -> None:
        """Raises: ValueError if the data module's token ids are of another tokenizer or chat template."""
        data = getattr(self.trainer, "datamodule", None)
        theirs, name = getattr(data, "tokenizer", None), getattr(data, "model", None)
        own = self.policy_settings.model
        if theirs is None or name == own:
            return
        if tokenizer_fingerprint(theirs) != tokenizer_fingerprint(self.chat.tokenizer):
            raise ValueError(
                f"the data's token ids are of the tokenizer of {name!r}, and the policy is {own!r}, whose tokenizer or "
                "chat template differs: give the data module the policy's model"
            )

    def on_train_start(self) -> None:
        super().on_train_start()
        self.check_tokenizer()

    def on_validation_start(self) -> None:
        self.check_tokenizer()

    on_test_start = on_predict_start = on_validation_start

    # --- batches -----------------------------------------------------------------------------------------------------

    def check_batch(self, batch: Any, kind: BatchKind | None) -> None:
        """Steps call this first.

        Raises: ValueError for a batch of another kind, agent or tokenizer.
        """
        if kind is None:
            return
        if not all(hasattr(batch, attribute) for attribute in kind.attributes):
            raise ValueError(
                f"{type(self).__name__} needs batches with {', '.join(kind.attributes)} ({kind.name}, as "
                f"{kind.data_module} gives them), got {type(batch).__name__}"
            )
        transcripts = list(_transcripts(batch))
        offline = getattr(batch, "offline", ())
        if len(offline) != self._checked_offline:  # stored episodes are the same in every round
            self._checked_offline = len(offline)
            transcripts += [transcript for episode in offline for transcript in episode]
        self._check_levels(transcripts)
        sequences: list[Sequence[int]] = [transcript.input_ids for transcript in transcripts]
        sequences += [ids for prompt in getattr(batch, "prompts", ()) for ids in (prompt.ids, *prompt.traces)]
        size = causal_lm(self.policy).config.get_text_config().vocab_size
        largest = max((max(ids) for ids in sequences if ids), default=0)
        if largest >= size:
            raise ValueError(
                f"the data hold token {largest}, but the policy {self.policy_settings.model!r} has {size} tokens: they "
                "are of another tokenizer; give the data module the policy's model"
            )

    def _check_levels(self, transcripts: Iterable[Transcript]) -> None:
        """Raises: ValueError for transcripts of another agent, or with other ends of turns."""
        agent = getattr(self, "agent", None)
        for transcript in transcripts:
            if agent is not None and transcript.level not in agent.levels:
                raise ValueError(
                    f"the agent of {type(self).__name__} has the levels {', '.join(agent.levels)}, but the transcript "
                    f"of {transcript.episode_id} is of the {transcript.level} level: give stage and data the same agent"
                )
            if transcript.end_of_turn_id != self.chat.end_of_turn_id:
                raise ValueError(
                    f"utterances of the transcript of {transcript.episode_id} end with token "
                    f"{transcript.end_of_turn_id}, those of the policy {self.policy_settings.model!r} with "
                    f"{self.chat.end_of_turn_id}: they are of another tokenizer or chat template"
                )


def _transcripts(batch: Any) -> Iterable[Transcript]:
    """Those that a batch brings to learn from."""
    yield from getattr(batch, "transcripts", ())
    for group in getattr(batch, "groups", ()):
        for expert in group.experts:
            yield from expert.transcripts
