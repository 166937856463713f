"""Tables and cells in Markdown."""

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def to_cell(error: str) -> str:
    """The last line of what went wrong, as a cell may hold it."""
    return error.strip().splitlines()[-1].replace("|", "/")[:160]
