"""What is finished of a long job, in one file of its target folder.

The file is replaced as a whole after each shard and removed when the folder is complete, so a job
that is killed at any moment is either continued or over. Another file beside it is held while a run
writes there.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hybrid.errors import CheckpointError
from hybrid.lock import lock_file

NAME, LOCK = ".quantize.json", ".quantize.lock"
PARTIAL = ".partial"
_FOREIGN = "an empty folder, or the unfinished one of the same call on the same files"
_HELD = "another run writes there; wait for it, or choose another folder"


class ResumeState:
    """The shards of `job` (plain JSON values) that are finished in `folder`, with their records."""

    def __init__(self, folder: Path, job: Any) -> None:
        self._folder, self._file = folder, folder / NAME
        self._job = json.loads(json.dumps(job))
        self._records: dict[str, Any] = {}
        self._lock: IO[bytes] | None = None

    def begin(self) -> str:
        """Make the folder, or go on in it, and keep other runs out; or say what it should be.

        It is left as it was if it holds anything but this job's beginnings, or if another run is
        writing there. Otherwise files that an earlier run did not finish are removed.
        CheckpointError if what it has noted cannot be read. Whatever comes of it, `close` follows.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._is_foreign():
            return _FOREIGN
        self._lock = lock_file(self._folder / LOCK)
        if self._lock is None:
            return _HELD
        job, records = self._read() if self._file.exists() else (self._job, {})
        if self._is_foreign() or (records and job != self._job):
            return _FOREIGN
        self._records = records
        for file in self._folder.glob(f"*{PARTIAL}"):
            file.unlink()
        self._save()
        return ""

    @property
    def records(self) -> Mapping[str, Any]:
        """What was noted of each shard that is finished and still there."""
        return {s: note for s, note in self._records.items() if (self._folder / s).exists()}

    def note(self, shard: str, record: Any) -> None:
        """The shard is finished."""
        self._records[shard] = record
        self._save()

    def end(self) -> None:
        """All is finished."""
        self._file.unlink()

    def close(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            (self._folder / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _is_foreign(self) -> bool:
        others = {file.name for file in self._folder.iterdir()} - {NAME + PARTIAL, LOCK}
        return bool(others) and NAME not in others

    def _read(self) -> tuple[Any, dict[str, Any]]:
        """The job and the records that an earlier run has noted."""
        try:
            kept = json.loads(self._file.read_text("utf-8"))
            return kept["job"], {**kept["records"]}
        except (ValueError, KeyError, TypeError):
            message = "is damaged; remove this folder and begin again"
            raise CheckpointError(str(self._file), message) from None

    def _save(self) -> None:
        write_whole(self._file, json.dumps({"job": self._job, "records": self._records}))


def write_whole(file: Path, text: str) -> None:
    """The whole text or nothing."""
    partial = file.with_name(file.name + PARTIAL)
    with naming(file):
        partial.write_text(text, "utf-8")
        partial.replace(file)


def copy_whole(source: Path, file: Path) -> None:
    """A copy under the name `file`, or nothing."""
    partial = file.with_name(file.name + PARTIAL)
    with naming(file):
        with partial.open("wb") as stream:
            for block in _blocks(source):
                stream.write(block)
        partial.replace(file)


def _blocks(file: Path) -> Iterator[bytes]:
    with naming(file), file.open("rb") as stream:
        while block := stream.read(1 << 20):
            yield block


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors of the system say which file they are about; a full disk's do not by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
