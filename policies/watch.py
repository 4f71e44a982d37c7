"""A policy file that is read again when it has changed; a broken change leaves it as it was.

Nothing runs in the background: a look at the file costs microseconds, at each request. What a link
leads to is looked at, by identity as well, because another file may have the same time and size.
"""

import logging
from pathlib import Path

from hybrid.errors import PolicyError
from hybrid.policies.loader import load_policy
from hybrid.policies.schema import Policy

_log = logging.getLogger("hybrid.policies")
Stamp = tuple[int, ...] | None


class WatchedPolicy:
    """The latest valid policy of a file. Files that it extends are not watched."""

    def __init__(self, path: str | Path) -> None:
        """Raises PolicyError if the file is not valid now."""
        self._path = Path(path)
        self._stamp = self._look()
        self._policy = load_policy(path)
        self.error: PolicyError | None = None

    def current(self) -> Policy:
        """The policy as it is now; `error` is what is wrong with the file, if anything is."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._policy, self.error = load_policy(self._path), None
                _log.info("%s: changed, and in force", self._path)
            except PolicyError as error:
                self.error = error
                _log.warning("the policy stays as it was: %s", error)
        return self._policy

    def _look(self) -> Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        identity = found.st_dev, found.st_ino
        return *identity, found.st_mtime_ns, found.st_ctime_ns, found.st_size
