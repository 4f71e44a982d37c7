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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hybrid import __version__
from hybrid.errors import BackendError, CheckpointError
from hybrid.files import read_regular_file
from hybrid.lock import lock_file
from hybrid.types import Message, RefineMode

FORMAT = 1
MAX_BYTES = 1 << 30  # of a file of records, unpacked
RECORDS, MANIFEST, _LOCK = "records.jsonl", "experiment.json", ".lock"
_PACKED = f"{RECORDS}.gz"
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Record:
    """One request with its answer, scores and timings.

    `condition` is the policy's name and `policy` the digest of its text. `score` is None where the
    scorer raised (`score_error`) or the request failed (`error`), `draft_score` where there was no
    draft. Durations are seconds. `canvases` has steps, convergence and mean entropy (nats) of each;
    `is_complete` says that the draft ended by itself. `settings` is all of the plan that decides
    the answer; replays look records up by it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    key: str
    condition: str
    policy: str
    task: str
    item: Count
    seed: Count
    repeat: Count
    prompt: str
    reference: str
    scorer: str
    started: float
    item_id: str = ""
    messages: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__
    hardware: str = ""
    text: str = ""
    score: float | None = None
    draft_text: str | None = None
    draft_score: float | None = None
    score_error: str | None = None
    error: str | None = None
    seconds: Seconds = 0.0
    draft_s: Seconds = 0.0
    refine_s: Seconds = 0.0
    predicted_p50_s: float = 0.0
    predicted_p95_s: float = 0.0
    budget_s: float | None = None
    label: str = ""
    max_steps: int | None = None
    mode: RefineMode = "none"
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
        return item_digest(
            self.prompt, self.task, self.reference, self.scorer, self.messages, self.metadata
        )

    @property
    def pair_key(self) -> tuple[str, int, int, int]:
        """What pairs it with the same request under another policy."""
        return self.task, self.item, self.seed, self.repeat


_RECORD = TypeAdapter(Record)


class _Condition(BaseModel):
    """See `hybrid.experiments.manifest`, as the next two."""

    name: str
    group: str
    digest: str
    values: dict[str, Any]
    policy: dict[str, Any]


class _Experiment(BaseModel):
    name: str
    description: str
    frontier: list[str]
    seeds: list[int]
    repeats: int


class _Manifest(BaseModel):
    experiment: _Experiment
    text: str
    baseline: str
    conditions: list[_Condition]
    items: dict[str, list[str]]
    costs: dict[str, dict[str, Any]]
    version: str
    at: str


def request_key(policy: str, item: str, seed: int, repeat: int) -> str:
    """Equal for requests that need not be made again; `policy` and `item` are digests."""
    parts = [policy, item, seed, repeat, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def item_digest(
    prompt: str,
    task: str,
    reference: str,
    scorer: str,
    messages: Sequence[Message] = (),
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Equal for equal items."""
    parts: list[Any] = [prompt, task, reference, scorer]
    if messages or metadata:
        parts += [[asdict(message) for message in messages], metadata or {}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def settings_key(settings: Mapping[str, Any]) -> str:
    """Equal for plans whose answers are."""
    return json.dumps(settings, sort_keys=True)


def read_records(folder: Path) -> list[Record]:
    """All whole records of a folder, the last of every key.

    Raises CheckpointError, with file and line, if there are none or one is not a record.
    """
    if not has_records(folder):
        raise CheckpointError(str(folder / RECORDS), "missing; run the experiment first")
    found = {record.key: record for file in _files(folder) for record in _parse(file)}
    return list(found.values())


def has_records(folder: Path) -> bool:
    """Whether an experiment was run there."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """The compressed file first, which has the older records."""
    return [file for file in (folder / _PACKED, folder / RECORDS) if file.is_file()]


def _parse(file: Path) -> Iterator[Record]:
    for number, line in enumerate(_content(file).split(b"\n"), 1):
        try:
            yield _RECORD.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "json_invalid":
                continue  # cut by a crash, or empty
            key = ".".join(map(str, first["loc"]))
            message = f"{key}: {first['msg']}" if key else first["msg"]
            raise CheckpointError(f"{file}:{number}", f"no record: {message}") from None


def _content(file: Path) -> bytes:
    try:
        content = read_regular_file(file, MAX_BYTES)
        if file.name == _PACKED:
            with gzip.GzipFile(fileobj=BytesIO(content)) as packed:
                content = packed.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(str(file), f"cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise CheckpointError(str(file), f"unpacks to more than {MAX_BYTES >> 20} MB, the limit")
    return content


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """What `experiment.json` says; raises CheckpointError."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(read_regular_file(file, MAX_BYTES))
    except FileNotFoundError:
        raise CheckpointError(str(file), "missing; is this an experiment's folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(file), f"cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(str(file), f"has format {given!r:.40}; this version reads {FORMAT}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(str(file), f"{key}: {first['msg']}") from None
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
        if file.exists() and not file.is_file():
            raise BackendError("record", f"{file}: not a regular file")
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
