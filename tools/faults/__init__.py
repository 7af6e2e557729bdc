"""Faults provoked on purpose, and whether anything is lost by them: see docs/reliability.md."""
