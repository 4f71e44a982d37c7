"""A file that one process at a time can hold, so that two runs do not write to one folder.

The lock is the operating system's: it ends with whoever holds it, however that ends. A file that a
killed run has left therefore stands in nobody's way.
"""

import fcntl
import os
from pathlib import Path
from typing import IO


def lock_file(file: Path) -> IO[bytes] | None:
    """The file, held until it is closed; None if it is held already. Raises OSError.

    Whoever holds it may remove it before closing it.
    """
    while True:
        stream = file.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, stream):
                return stream
        except BlockingIOError:
            stream.close()
            return None
        except BaseException:
            stream.close()
            raise
        stream.close()  # removed since it was opened: it is another file that counts now


def _is_still(file: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
