"""Dry runs, which write nothing."""

import lightning as L


def is_dry_run(trainer: L.Trainer) -> bool:
    """Return whether this is a dry run (`fast_dev_run`)."""
    return bool(getattr(trainer, "fast_dev_run", False))
