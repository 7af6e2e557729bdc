"""Seeds with the run's `seed_everything` as their default."""

from __future__ import annotations

import hashlib
import os

DEFAULT_SEED = 0


def run_seed() -> int:
    """Return the seed of the latest `lightning.seed_everything`, or 0 if it was never called."""
    return int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED))  # where Lightning keeps it


def resolve_seed(seed: int | None) -> int:
    """Return an explicit seed unchanged, and the run's seed for None."""
    return run_seed() if seed is None else seed


def derive_seed(seed: int, *names: object) -> int:
    """Return a seed for one purpose, unrelated to those of other names and of neighbouring seeds.

    A sum is not enough: with `seed + step`, runs with neighbouring seeds have the same samples one step apart.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
