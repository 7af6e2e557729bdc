"""Runs as one HTML file that opens from disk: curves, rollouts, settings (`lit-rft show`)."""

from lit_rft.viewer.page import make_page as make_page
from lit_rft.viewer.run import RunData as RunData
from lit_rft.viewer.run import read_run as read_run

__all__ = ["RunData", "make_page", "read_run"]
