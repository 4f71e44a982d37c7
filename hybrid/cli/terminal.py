"""The consoles that commands write to."""

import os

from rich.console import Console


class Terminal(Console):
    """A console that lets a closed pipe be known; rich's own leaves the process with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled."""
        raise

    @property
    def can_animate(self) -> bool:
        """Whether a person watches who has not asked for plain output (NO_COLOR, dumb terminal)."""
        return self.is_terminal and not self.is_dumb_terminal and not os.environ.get("NO_COLOR")
