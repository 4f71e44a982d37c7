"""Compiled passes in the user's cache directory: one folder for a model, on this machine only.

A folder's name is a digest of everything that its passes hold for: the model's files, this
package's source, PyTorch's version and the processor. A file in it is named by its own content, and
the manifest, which is replaced at once, names the files: so whoever reads finds a whole set or
none, whoever else compiles, or was killed at it.
"""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PROCESSORS = Path("/proc/cpuinfo")
_SOURCES = ("gemma", "kernels")  # what a pass is made of
_GRACE_S = 3600.0  # in which a file without a manifest may be another process's, at work
MANIFEST = "manifest.json"


class ArtefactError(Exception):
    """Kept passes that cannot be used, and why."""


def artefacts_folder() -> Path:
    """Where all compiled passes are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "hybrid" / "compiled"


def artefact_of(model: Path) -> Path:
    """The folder of a model folder's compiled passes, whether it is there or not."""
    digest = hashlib.sha256(json.dumps([_torch(), *_machine()]).encode())
    package = Path(__file__).parent
    sources = [file for part in _SOURCES for file in sorted((package / part).rglob("*.py"))]
    for file in (*sources, *sorted(model.glob("*.json")), *sorted(model.glob("*.safetensors"))):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return artefacts_folder() / digest.hexdigest()[:24]


def read_artefact(folder: Path) -> dict[str, Path]:
    """The whole, undamaged files of a folder by their pass's name; none if nothing was compiled.

    Raises ArtefactError for anything else.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {str(name): folder / Path(str(file)).name for name, file in manifest.items()}
        for file in files.values():
            if _digest(file.read_bytes()) != file.stem:
                raise ArtefactError(f"{file} is damaged")
    except FileNotFoundError as error:
        if error.filename == str(folder / MANIFEST):
            return {}
        raise ArtefactError(f"{error.filename} is missing") from None
    except OSError as error:
        raise ArtefactError(f"{error.filename}: {error.strerror}") from None
    except (ValueError, AttributeError, RecursionError):
        raise ArtefactError(f"{folder / MANIFEST} is damaged") from None
    return files


def write_artefact(folder: Path, passes: Mapping[str, bytes]) -> None:
    """Keep passes in place of what the folder holds; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: f"{_digest(content)}.so" for name, content in passes.items()}
    for name, file in files.items():
        _write(folder / file, passes[name])
    _write(folder / MANIFEST, json.dumps(files).encode())
    for other in folder.iterdir():
        if other.name not in {*files.values(), MANIFEST}:
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > _GRACE_S:
                    other.unlink()


def compiled_models() -> list[str]:
    """What is compiled on this machine, as names and sizes: measured times hold for that alone."""
    found = []
    for manifest in sorted(artefacts_folder().glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, AttributeError):
            files = json.loads(manifest.read_text("utf-8")).values()
            sizes = [(manifest.parent / Path(file).name).stat().st_size for file in files]
            found.append(f"{manifest.parent.name} {sizes}")
    return found


def _write(file: Path, content: bytes) -> None:
    new = file.with_suffix(f".{os.getpid()}.new")
    try:
        new.write_bytes(content)
        os.replace(new, file)
    finally:
        with suppress(OSError):
            new.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _machine() -> list[str]:
    """The processor and all that it can do."""
    text = ""
    with suppress(OSError):  # not Linux
        text = _PROCESSORS.read_text("utf-8", errors="replace")
    processor = text.partition("\n\n")[0]
    told = re.findall(r"^(?:model name|flags|Features)\s*: (.*)$", processor, re.MULTILINE)
    return [platform.system(), platform.machine(), platform.processor(), *told]
