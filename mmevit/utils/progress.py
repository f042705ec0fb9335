"""Progress of long work."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar('T')


def show_progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Show the progress of a loop on stderr, over a sequence or ``total`` items."""
    return track(items, title, total, transient=True, console=Console(stderr=True))
