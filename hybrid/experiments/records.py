"""Records of a run: one JSON line a request, appended as soon as it is answered.

A folder has `experiment.json` (`manifest`) and `records.jsonl`, or its gzip. A line that a crash
cut is dropped when the folder is read again, and that request is made once more.
"""

import errno
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from hybrid import __version__
from hybrid.errors import BackendError, CheckpointError
from hybrid.lock import lock_file

FORMAT = 1
RECORDS, MANIFEST, _LOCK = "records.jsonl", "experiment.json", ".lock"
_PACKED = f"{RECORDS}.gz"


@dataclass(frozen=True, slots=True)
class Record:
    """One request with its answer, scores and timings.

    `condition` is the policy's name and `policy` the digest of its text. `score` is None where the
    scorer raised (`score_error`) or the request failed (`error`), `draft_score` where there was no
    draft. Durations are seconds. `canvases` has steps, convergence and mean entropy (nats) of each;
    `is_complete` says that the draft ended by itself. `settings` is all of the plan that decides
    the answer; replays look records up by it.
    """

    key: str
    condition: str
    policy: str
    task: str
    item: int
    seed: int
    repeat: int
    prompt: str
    reference: str
    scorer: str
    started: float
    version: str = __version__
    hardware: str = ""
    text: str = ""
    score: float | None = None
    draft_text: str | None = None
    draft_score: float | None = None
    score_error: str | None = None
    error: str | None = None
    seconds: float = 0.0
    draft_s: float = 0.0
    refine_s: float = 0.0
    predicted_p50_s: float = 0.0
    predicted_p95_s: float = 0.0
    budget_s: float | None = None
    label: str = ""
    max_steps: int | None = None
    mode: str = "none"
    settings: Mapping[str, Any] | None = None
    rule: str = ""
    finish_reason: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    passes: int = 0
    draft_tokens: int = 0
    accepted_tokens: int | None = None
    is_accepted: bool | None = None
    canvases: tuple[tuple[int, bool, float], ...] = ()
    canvas_length: int = 0
    is_complete: bool | None = None
    mean_logprob: float | None = None
    min_logprob: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether the answer has full marks."""
        return self.score is not None and self.score >= 1

    @property
    def was_right(self) -> bool | None:
        """Whether the draft had; None without a draft."""
        return None if self.draft_score is None else self.draft_score >= 1

    @property
    def in_time(self) -> bool:
        """Whether it kept its budget; always true without one."""
        return self.budget_s is None or self.seconds <= self.budget_s

    @property
    def item_digest(self) -> str:
        """Of all that makes the item; see `item_digest`."""
        return item_digest(self.prompt, self.task, self.reference, self.scorer)

    @property
    def pair_key(self) -> tuple[str, int, int, int]:
        """What pairs it with the same request under another policy."""
        return self.task, self.item, self.seed, self.repeat


_FIELDS = {field.name for field in fields(Record)}


def request_key(
    digest: str, prompt: str, task: str, reference: str, scorer: str, seed: int, repeat: int
) -> str:
    """Equal for requests that need not be made again."""
    parts = [digest, prompt, task, reference, scorer, seed, repeat, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def item_digest(prompt: str, task: str, reference: str, scorer: str) -> str:
    """Equal for items that are."""
    return hashlib.sha256(json.dumps([prompt, task, reference, scorer]).encode()).hexdigest()[:12]


def settings_key(settings: Mapping[str, Any]) -> str:
    """Equal for plans whose answers are."""
    return json.dumps(settings, sort_keys=True)


def read_records(folder: Path) -> list[Record]:
    """All whole records of a folder, the last of every key; raises CheckpointError if it has none
    to read.
    """
    if not has_records(folder):
        raise CheckpointError(str(folder / RECORDS), "missing; run the experiment first")
    found = {record.key: record for file in _files(folder) for record in _parse(file)}
    return list(found.values())


def has_records(folder: Path) -> bool:
    """Whether an experiment was run there."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """What is packed was recorded before what is not."""
    return [file for file in (folder / _PACKED, folder / RECORDS) if file.is_file()]


def _parse(file: Path) -> Iterator[Record]:
    content = file.read_bytes()
    if file.name == _PACKED:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise CheckpointError(str(file), f"cannot be unpacked: {error}") from None
    for line in content.split(b"\n"):
        try:
            values = json.loads(line)
            known = {name: values[name] for name in values if name in _FIELDS}
            known["canvases"] = tuple(tuple(canvas) for canvas in known.get("canvases", ()))
            known["notes"] = tuple(known.get("notes", ()))
            yield Record(**known)
        except (ValueError, TypeError, AttributeError, KeyError):
            continue  # cut by a crash, or empty


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """What `experiment.json` says; raises CheckpointError."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(str(file), "missing; is this an experiment's folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(str(file), f"cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(str(file), f"has format {given!r}; this version reads {FORMAT}")
    return manifest


class Recorder:
    """Appends records to a folder; safe if a run dies at any moment."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, record: Record) -> None:
        """Append one; raises BackendError if the disk does not take it."""
        line = json.dumps(asdict(record), allow_nan=False) + "\n"
        start = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line.encode()) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):  # a half line is dropped when the folder is read
                self._file.truncate(start)
            message = f"{self._file.name}: {error.strerror}; run again to go on"
            raise BackendError("record", message) from None


@contextmanager
def recording(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Recorder]:
    """A recorder for a folder that nobody else writes to meanwhile; raises BackendError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / _LOCK)
    except OSError as error:
        raise BackendError("record", f"{folder}: {error.strerror}") from None
    if lock is None:
        raise BackendError("record", f"{folder}: another run writes there")
    with lock:
        _write(folder / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n")
        file = folder / RECORDS
        _end_last_line(file)
        with file.open("ab", buffering=0) as stream:
            yield Recorder(stream)


def _end_last_line(file: Path) -> None:
    """Give a line that was cut in the middle an end, so that the next one starts afresh."""
    if file.is_file() and file.stat().st_size:
        with file.open("rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _write(file: Path, text: str) -> None:
    try:
        file.with_suffix(".part").write_text(text, "utf-8")
        file.with_suffix(".part").replace(file)
    except OSError as error:
        raise BackendError("record", f"{file}: {error.strerror}") from None
