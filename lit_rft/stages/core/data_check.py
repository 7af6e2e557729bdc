"""Checks that the data are those that a stage can learn from, before the first step."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.models.backbone import causal_lm
from lit_rft.models.support import fixed_context, position_limit
from lit_rft.transcripts import Transcript
from lit_rft.transcripts.fingerprint import tokenizer_fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchKind:
    """A kind of batch. Any object with its attributes will do.

    Args:
        name: of the class.
        attributes: those that a stage reads.
        data_module: a data module that yields it.
    """

    name: str
    attributes: tuple[str, ...]
    data_module: str


STEPS = BatchKind("StepTranscripts", ("transcripts", "num_utterances"), "TrajectoryDataModule")
ROUNDS = BatchKind("OnlineBatch", ("jobs", "offline"), "OnlineDataModule")
GROUPS = BatchKind("EpisodeGroupBatch", ("groups", "jobs"), "EpisodeGroupDataModule")
PROMPTS = BatchKind("PromptBatch", ("prompts", "sources"), "MathPromptDataModule")
EPISODES = BatchKind("EpisodeJobs", ("jobs", "make_env", "tasks"), "TrajectoryDataModule")


def check_data_module(stage: Any, kinds: dict[str, BatchKind | None]) -> None:
    """Check the trainer's data module as far as it describes itself.

    Args:
        stage: the stage.
        kinds: of the batches that the stage needs, by the data module's attribute (`training_batch`,
            `evaluation_batch`).

    Raises:
        ValueError: For a data module that yields other batches, or has another agent.
    """
    data = getattr(stage.trainer, "datamodule", None)
    for attribute, kind in kinds.items():
        given = getattr(data, attribute, None)
        if kind is not None and given not in (None, kind.name):
            raise ValueError(
                f"{type(stage).__name__} needs a data module that yields {kind.name}, as {kind.data_module} does: got "
                f"{type(data).__name__}, which yields {given}"
            )
    agent = getattr(data, "agent", None)
    if "training_batch" in kinds and agent is not None and stage.agent is not None and agent != stage.agent:
        raise ValueError(
            f"the agent must be the same for stage and data module: {type(stage).__name__} has {stage.agent}, "
            f"{type(data).__name__} has {agent}; remove the data module's, which then takes the stage's"
        )


def check_tokenizer(stage: Any) -> None:
    """Check that the data module's token ids are of the policy's tokenizer and chat template.

    Raises:
        ValueError: If they are not.
    """
    data = getattr(stage.trainer, "datamodule", None)
    tokenizer, model = getattr(data, "tokenizer", None), getattr(data, "model", None)
    policy = stage.policy_settings.model
    if tokenizer is None or model == policy:
        return
    if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(stage.chat.tokenizer):
        raise ValueError(
            f"the data's token ids are of the tokenizer of {model!r}, and the policy is {policy!r}, whose tokenizer or "
            "chat template differs: give the data module the policy's model"
        )


def check_positions(stage: Any) -> None:
    """Check that the model has positions for the longest conversation of the agent.

    Raises:
        ValueError: It has a table of fewer: a longer conversation would end the run.
    """
    limit = position_limit(stage.policy)
    if limit is not None and stage.agent is not None and stage.agent.levels and stage.agent.max_length > limit:
        raise ValueError(
            f"agent.max_length is {stage.agent.max_length}, but the policy {stage.model_name!r} has positions for "
            f"{limit} tokens: set agent.init_args.max_length to at most {limit}"
        )


def warn_of_positions(stage: Any) -> None:
    """Warn if positions may depend on the other sequences of a pass, so that log-probabilities do."""
    limit = fixed_context(stage.policy)
    longest = getattr(stage, "max_tokens", 0) if stage.agent is None else stage.agent.max_length
    if limit is not None and longest > limit:
        logger.warning(
            "positions of %s depend on the longest sequence of a pass beyond %d tokens: log-probabilities of longer "
            "ones differ between sampling and training, and from batch to batch; keep conversations within %d",
            stage.model_name, limit, limit,
        )  # fmt: skip


def warn_of_context(stage: Any, max_new_tokens: int) -> None:
    """Warn if completions of the maximum length do not fit into the model's context.

    Raises:
        ValueError: They do not, and the model has no further positions.
    """
    limit = position_limit(stage.policy)
    if limit is not None and max_new_tokens >= limit:
        raise ValueError(
            f"sampling.max_new_tokens is {max_new_tokens}, but the policy {stage.model_name!r} has positions for "
            f"{limit} tokens, the prompt included: lower it"
        )
    longest = _context(stage)
    if longest is not None and max_new_tokens >= longest:
        logger.warning("sampling.max_new_tokens=%d, but %s was made for %d tokens, the prompt included",
                       max_new_tokens, stage.model_name, longest)  # fmt: skip


def _context(stage: Any) -> int | None:
    """Return the number of tokens that the policy was made for, if its configuration has it."""
    return getattr(causal_lm(stage.policy).config.get_text_config(), "max_position_embeddings", None)


class BatchCheck:
    """Checks the batches of a stage's data loaders.

    Stored episodes that come with each batch (`offline`) are checked once.
    """

    def __init__(self) -> None:
        self._num_offline = 0  # stored episodes that were checked

    def __call__(self, stage: Any, batch: Any, kind: BatchKind | None) -> None:
        """Check a batch.

        Raises:
            ValueError: For a batch of another kind, agent or tokenizer, or longer than the model's table of positions.
        """
        if kind is None:
            return
        if not all(hasattr(batch, attribute) for attribute in kind.attributes):
            raise ValueError(
                f"{type(stage).__name__} needs batches with {', '.join(kind.attributes)} ({kind.name}, as "
                f"{kind.data_module} gives them), got {type(batch).__name__}"
            )
        transcripts = list(_transcripts(batch))
        offline = getattr(batch, "offline", ())
        if len(offline) != self._num_offline:
            self._num_offline = len(offline)
            transcripts += [transcript for episode in offline for transcript in episode]
        _check_levels(stage, transcripts)
        sequences: list[Sequence[int]] = [transcript.input_ids for transcript in transcripts]
        sequences += [ids for prompt in getattr(batch, "prompts", ()) for ids in (prompt.ids, *prompt.traces)]
        size = causal_lm(stage.policy).config.get_text_config().vocab_size
        largest = max((max(ids) for ids in sequences if ids), default=0)
        if largest >= size:
            raise ValueError(
                f"the data hold token {largest}, but the policy {stage.policy_settings.model!r} has {size} tokens: "
                "they are of another tokenizer; give the data module the policy's model"
            )
        longest, limit = max(map(len, sequences), default=0), _context(stage)
        # most batches are shorter, and need no search for a table
        if limit is not None and longest > limit and position_limit(stage.policy) is not None:
            raise ValueError(
                f"the data hold {longest} tokens in a row, but the policy {stage.model_name!r} has positions "
                f"for {limit}: lower the length limit of the data, or use another model"
            )


def _check_levels(stage: Any, transcripts: Iterable[Transcript]) -> None:
    """Check agent and end of turn of transcripts.

    Raises:
        ValueError: For transcripts of another agent, or with another end of turn.
    """
    for transcript in transcripts:
        others = getattr(stage, "other_levels", ())
        if stage.agent is not None and transcript.level not in (*stage.agent.levels, *others):
            raise ValueError(
                f"the agent of {type(stage).__name__} has the levels {', '.join(stage.agent.levels)}, but the "
                f"transcript of {transcript.episode_id} is of the {transcript.level} level: give stage and data the "
                "same agent"
            )
        if transcript.end_of_turn_id != stage.chat.end_of_turn_id:
            raise ValueError(
                f"utterances of the transcript of {transcript.episode_id} end with token {transcript.end_of_turn_id}, "
                f"those of the policy {stage.policy_settings.model!r} with {stage.chat.end_of_turn_id}: they are of "
                "another tokenizer or chat template"
            )


def _transcripts(batch: Any) -> Iterable[Transcript]:
    """Return the transcripts of a batch that are trained on."""
    yield from getattr(batch, "transcripts", ())
    for group in getattr(batch, "groups", ()):
        for expert in group.experts:
            yield from expert.transcripts
