"""Durations as text."""


def duration(seconds: float) -> str:
    """Format a duration: 4.2 s, 1 min 01 s, 1 h 02 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
