"""Tasks of the data (`data.tasks`), as they are written: "text,image", or "image,text without speech"."""

AS_WRITTEN_TASK = "as_written"
"""The task that takes the parts in the order of the document."""

_WITHOUT = " without "


def mentions_of(task: str) -> list[str]:
    """Return the modalities that a task orders: those that are given, and the last one, which is predicted."""
    return [name.strip() for name in task.partition(_WITHOUT)[0].split(",")]


def lacking(task: str) -> list[str]:
    """Return the modalities of which a document that serves a task has no part."""
    _, said, names = task.partition(_WITHOUT)
    return [name.strip() for name in names.split(",")] if said else []
