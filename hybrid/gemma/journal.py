"""What is finished of a long job, in one file of its target folder.

The file is replaced as a whole after each shard and removed when the folder is complete, so a job
that is killed at any moment is either continued or over.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = ".quantize.json"
PARTIAL = ".partial"


class Journal:
    """The shards of `job` (plain JSON values) that are finished in `folder`, with their records."""

    def __init__(self, folder: Path, job: Any) -> None:
        self._folder, self._file = folder, folder / NAME
        self._job = json.loads(json.dumps(job))
        self._records: dict[str, Any] = {}

    def begin(self) -> bool:
        """Make the folder, or go on in it; False if it holds anything but this job's beginnings.

        Files that an earlier run did not finish are removed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {"job": self._job, "records": {}}
        if self._file.exists():
            kept = json.loads(self._file.read_text("utf-8"))
        elif any(file.name != NAME + PARTIAL for file in self._folder.iterdir()):
            return False
        if kept["records"] and kept["job"] != self._job:
            return False
        self._records = kept["records"]
        for file in self._folder.glob(f"*{PARTIAL}"):
            file.unlink()
        self._save()
        return True

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

    def _save(self) -> None:
        write_whole(self._file, json.dumps({"job": self._job, "records": self._records}))


def write_whole(file: Path, text: str) -> None:
    """The whole text or nothing."""
    partial = file.with_name(file.name + PARTIAL)
    with naming(file):
        partial.write_text(text, "utf-8")
        partial.replace(file)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors of the system say which file they are about; a full disk's do not by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
