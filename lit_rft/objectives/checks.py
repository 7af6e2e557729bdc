"""Argument checks shared by the objectives.

They cost nothing next to a forward pass and turn silent broadcasting into an error that names the argument.
"""

from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have the shape of the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(
                f"{name} must have the shape of {first_name}: expected {tuple(first.shape)}, got {tuple(tensor.shape)}"
            )


def check_dims(expected: int, **tensors: Tensor) -> None:
    """Raise ValueError unless every named tensor has `expected` dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != expected:
            raise ValueError(f"{name} must have {expected} dimension(s), got shape {tuple(tensor.shape)}")


def check_number(**numbers: float) -> None:
    """Raise ValueError if a named threshold is NaN, with which every comparison would be false."""
    for name, number in numbers.items():
        if number != number:
            raise ValueError(f"{name} must be a number, got {number}")


def check_non_negative(**numbers: float) -> None:
    """Raise ValueError if a named coefficient is negative or NaN."""
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} must be >= 0, got {number}")


def check_fraction(**numbers: float) -> None:
    """Raise ValueError if a named coefficient is outside [0, 1] or NaN."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number}")
