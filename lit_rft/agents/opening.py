"""The first turn of a conversation: the task, then the first observation."""


def opening_text(task_description: str, observation: str, shown: str | None = None) -> str:
    """Write the task and an observation; the observation alone if there is no other task.

    Args:
        task_description: the task in words. Without one, an environment's first observation takes its place.
        observation: the observation.
        shown: the observation as it is written, with its admissible actions for example; None for `observation`.
    """
    shown = observation if shown is None else shown
    task = separate_task(task_description, observation)
    return (f"Task: {task}\n\n{shown}" if task else shown).strip()


def separate_task(task_description: str, observation: str) -> str:
    """Return the task in words; empty if it is only the observation, which is shown anyway."""
    return "" if task_description.strip() == observation.strip() else task_description
