"""What a server allows: every bound, with its default.

The defaults suit one machine with one pair of models; each is an option of `hybrid serve` and a row
in docs/serving.md.
"""

from dataclasses import dataclass

from hybrid.errors import RequestError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a server. Sizes are bytes, durations seconds; `drain_s` None is the longest budget
    that the policies name, or 30 seconds if they name none.
    """

    max_body_bytes: int = 2 * MIB
    max_header_bytes: int = 32 * 1024
    max_in_flight: int = 256
    max_connections: int = 1024
    max_choices: int = 16
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    drain_s: float | None = None
    draft_frames_per_s: float = 15.0
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_header_bytes", "max_in_flight", "max_connections"):
            if getattr(self, name) < 1:
                raise RequestError(name, getattr(self, name), "a whole number from 1 up")
        if self.root_path and not self.root_path.startswith("/"):
            raise RequestError("root_path", self.root_path, "a path such as /hybrid")
