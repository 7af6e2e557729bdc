"""Digests of training data: a position in a checkpoint belongs to the data that it was saved with."""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_rft.envs.base import EpisodeSpec
from lit_rft.transcripts import Transcript


def check_position(state: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
    """Check a checkpoint's data against the current data.

    Raises:
        ValueError: The message names the first property that differs.
    """
    if missing := [name for name in shape if name not in state]:
        raise ValueError(
            f"cannot resume: the checkpoint was made with another kind of training data, which has {', '.join(state)}; "
            f"this one has {', '.join(missing)}: use the data module of that run"
        )
    for name, value in shape.items():
        if state[name] != value and name == "digest":
            raise ValueError(
                "cannot resume: the checkpoint was made with other training data (equally many other tokens); use "
                "its files, tokenizer and prompts, or start a new run from its weights (policy.start_from)"
            )
        if state[name] != value:
            where = " (data.init_args.seed, or else seed_everything)" if name == "seed" else ""
            raise ValueError(
                f"cannot resume: the checkpoint was made with {name}={state[name]}, now it is {value}{where}; set it "
                "back, or start a new run from its weights (policy.start_from)"
            )


def digest_of(parts: Iterable[Sequence[int] | str]) -> str:
    """Return a short digest of a data set's contents, given as token ids and texts in order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else array("q", part).tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def transcript_parts(transcript: Transcript) -> list[Sequence[int] | str]:
    """Return the trained content of a transcript, for `digest_of`."""
    decisions = [*transcript.utterance_starts, *transcript.utterance_ends]
    return [transcript.level, transcript.input_ids, decisions, repr([tuple(o) for o in transcript.outcomes])]


def job_parts(job: EpisodeSpec) -> list[str]:
    """Return what matters of an episode to play, for `digest_of`; not its options, which may hold paths."""
    return [job.id, f"{job.seed} {job.step_limit}"]
