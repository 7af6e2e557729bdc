"""A reward of the runs that answer problems."""

from typing import Any


def vowels(completions: Any, rows: Any) -> list[float]:
    """Reward completions with an odd number of vowels."""
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]
