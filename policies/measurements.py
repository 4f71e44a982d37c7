"""What was measured of this machine, kept in the user's cache directory.

A file's name says what it holds for: hardware, models, versions and compiled passes, hashed. Inside
it says so in words, so that a file of another machine is never taken for this one's.
"""

import hashlib
import json
import os
import platform
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from hybrid.artefacts import compiled_models
from hybrid.files import read_regular_file
from hybrid.policies.latency import LatencyModel
from hybrid.policies.schema import Policy

VERSION = 1
MAX_BYTES = 1 << 20
Method = Literal["calibrated", "quick"]
_LEARNED = ("slowdown", "draft_wait", "refine_wait", "tasks", "all_tasks")
_COSTS = tuple(field.name for field in fields(LatencyModel) if field.name not in _LEARNED)
_DRIVER, _PROCESSORS = Path("/proc/driver/nvidia"), Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Costs, how and when (UTC, ISO 8601) they were measured."""

    costs: LatencyModel
    method: Method
    measured_at: str

    @property
    def description(self) -> str:
        """In a few words, for people."""
        date = self.measured_at[:10]
        if self.method == "calibrated":
            return f"calibrated on {date}"
        return f"measured quickly on {date}; `hybrid calibrate` does it well"


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why nothing can be used of what is kept; `reason` is empty where nothing is."""

    reason: str = ""


def cache_file(policy: Policy) -> Path:
    """Where the costs of this machine and the policy's models are kept."""
    holds_for = [hardware(), policy.models.model_dump(), versions(), *compiled_models()]
    key = json.dumps(holds_for, sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return _folder() / f"{digest}.json"


def history_file(policy: Policy) -> Path:
    """Where what is learned of requests is kept, beside the costs."""
    return cache_file(policy).with_suffix(".history.json")


def read_measurement(file: Path) -> Measurement | Unusable:
    """What is kept in a file, if it holds for this machine and can be read."""
    try:
        values = json.loads(read_regular_file(file, MAX_BYTES))
        found = values["version"]
        if found != VERSION:
            return Unusable(f"has format {str(found)[:20]!r}; this version reads {VERSION}")
        if values["hardware"] != hardware():
            return Unusable(f"was measured on other hardware: {str(values['hardware'])[:80]}")
        return _read(values)
    except FileNotFoundError:
        return Unusable()
    except OSError as error:
        return Unusable(f"cannot be read: {error.strerror}")
    except (ValueError, TypeError, KeyError, RecursionError):
        return Unusable("is damaged")


def costs_to_json(costs: LatencyModel) -> dict[str, float]:
    """The measured part of a latency model, without what was learned."""
    return {name: getattr(costs, name) for name in _COSTS}


def costs_from_json(values: Any) -> LatencyModel:
    """The inverse; raises ValueError for anything else."""
    if not isinstance(values, dict) or set(values) != set(_COSTS):
        raise ValueError(values)
    if not all(isinstance(cost, int | float) and 0 <= cost < 3600 for cost in values.values()):
        raise ValueError(values)
    return LatencyModel(**values)


def write_measurement(file: Path, measurement: Measurement, policy: Policy) -> bool:
    """Keep it; False if the cache directory cannot be written."""
    values = {
        "version": VERSION,
        "measured_at": measurement.measured_at,
        "method": measurement.method,
        "hardware": hardware(),
        "models": policy.models.model_dump(),
        "versions": versions(),
        "costs": costs_to_json(measurement.costs),
    }
    return write_atomically(file, json.dumps(values, indent=1))


def others(file: Path, policy: Policy) -> list[str]:
    """What else is kept for the policy's models: hardware and versions that are not this one's."""
    found = []
    for other in sorted(file.parent.glob("*.json"))[:100]:
        if other == file or other.name.endswith(".history.json"):
            continue
        try:
            values = json.loads(read_regular_file(other, MAX_BYTES))
            if values["models"] == policy.models.model_dump():
                is_here = values["hardware"] == hardware()
                found.append("other versions" if is_here else str(values["hardware"])[:80])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def is_writable(file: Path) -> bool:
    """Whether the file could be written, with the folders that it needs."""
    existing = next(folder for folder in file.parents if folder.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def write_atomically(file: Path, text: str) -> bool:
    """Replace a file at once, whoever else writes it; False if it cannot be written."""
    new = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, "utf-8")
        os.replace(new, file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        return False
    return True


def _read(values: Any) -> Measurement:
    costs = costs_from_json(values["costs"])
    method, measured_at = values["method"], values["measured_at"]
    if method not in ("calibrated", "quick") or not isinstance(measured_at, str):
        raise ValueError(method)
    return Measurement(costs, method, measured_at[:40])


def _folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "hybrid" / "latency"


def hardware() -> str:
    """Processor, cores and NVIDIA GPUs, as the system names them: asking torch takes a second."""
    gpus = [_contents(path) for path in sorted(_DRIVER.glob("gpus/*/information"))]
    models = re.findall(r"^model name\s*: (.*)$", _contents(_PROCESSORS), re.MULTILINE)
    processor = models[0] if models else platform.processor()
    return f"{platform.machine()} {processor} x{os.cpu_count()} {gpus}"


def versions() -> list[str]:
    """Of the packages that decide how fast a model runs."""
    found = []
    for name in ("hybrid-gemma", "torch"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found


def _contents(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
