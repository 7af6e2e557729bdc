"""Checking an environment before anything is trained on it: what it reports, what is wrong, how fast it is."""

from lit_rft.envs.checking.check import check_env
from lit_rft.envs.checking.report import EnvReport, Finding

__all__ = ["EnvReport", "Finding", "check_env"]
