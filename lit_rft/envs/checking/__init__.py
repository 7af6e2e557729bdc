"""Checks of an environment before training: its info, its errors, its speed."""

from lit_rft.envs.checking.check import check_env
from lit_rft.envs.checking.report import EnvReport, Finding

__all__ = ["EnvReport", "Finding", "check_env"]
