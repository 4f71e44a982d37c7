"""All kernels of a model compiled when it is loaded, in child processes.

The children fill Triton's cache on disk, from which this process loads them in milliseconds. An
assertion of the compiler aborts its process; here that is a child, and the error names the kernel.
"""

import base64
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor

from hybrid.cores import available_cores
from hybrid.engine.compile_worker import compile_variant
from hybrid.engine.kernel_hashes import hash_kernels, source_hash
from hybrid.engine.model import EngineModel
from hybrid.engine.warm_up import list_launches
from hybrid.errors import CapabilityError
from hybrid.kernels.child import Child
from hybrid.kernels.launch import Launch

_MAX_CHILDREN = 8
_LIMIT_S = 300.0  # for one kernel: the slowest known takes 20


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """A kernel, by module and name, and what its code depends on.

    `pointers` are a dtype and whether 16 divides the address, by argument; `numbers` the others.
    """

    module: str
    name: str
    pointers: dict[str, tuple[torch.dtype, bool]]
    numbers: dict[str, object]
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, launch: Launch) -> "KernelVariant":
        """The variant that a launch runs."""
        pointers, numbers = {}, {}
        for name, value in launch.arguments.items():
            if isinstance(value, Tensor):
                is_aligned = value.storage_offset() * value.itemsize % 16 == 0
                pointers[name] = value.dtype, is_aligned
            else:
                numbers[name] = value
        kernel = launch.kernel
        return cls(
            kernel.__module__,
            kernel.__name__,
            pointers,
            numbers,
            launch.num_warps,
            launch.num_stages,
        )


@dataclass(frozen=True, slots=True)
class CompileFailure:
    """A kernel that did not compile, and why."""

    kernel: str
    reason: str


def compile_ahead(model: EngineModel) -> None:
    """Compile whatever the model can launch on its GPU, and load it; says on stderr what it does.

    Raises CapabilityError for the first kernel that does not compile.
    """
    device = model.device
    properties = torch.cuda.get_device_properties(device)
    architecture = 10 * properties.major + properties.minor
    launches = list_launches(model, architecture, properties.multi_processor_count)
    variants = [KernelVariant.of(launch) for launch in launches]
    marker = _marker(variants, architecture)
    if not marker.exists():
        failures = _with_progress(variants, architecture)
        if failures:
            raise _refusal(failures, f"{device} ({properties.name})")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    hash_kernels()
    with torch.cuda.device(device):
        for variant in variants:
            _ = compile_variant(variant).run  # loads the machine code onto the device


def _refusal(failures: Sequence[CompileFailure], device: str) -> CapabilityError:
    first, others = failures[0], len(failures) - 1
    more = f"; {others} more kernels do not compile" if others else ""
    missing = f"{first.kernel} does not compile with {toolchain()}: {first.reason}{more}"
    return CapabilityError(f"kernel {first.kernel}", device, missing)


def compile_variants(
    variants: Sequence[KernelVariant],
    architecture: int,
    done: Callable[[], None],
    num_children: int | None = None,
    path: Sequence[str] = (),
    limit_s: float = _LIMIT_S,
) -> list[CompileFailure]:
    """Compile in child processes, calling `done` after each; those that failed.

    `path` are further folders that children import kernels from.
    """
    queue: SimpleQueue[KernelVariant] = SimpleQueue()
    for variant in variants:
        queue.put(variant)
    count = min(num_children or min(available_cores(), _MAX_CHILDREN), len(variants))

    def work() -> list[CompileFailure]:
        failures: list[CompileFailure] = []
        while True:
            with Child("hybrid.engine.compile_worker", [str(architecture)], path) as child:
                ended = _feed(child, queue, done, failures, limit_s)
            if not ended:
                return failures

    with ThreadPoolExecutor(max(count, 1)) as pool:
        found = [pool.submit(work) for _ in range(count)]
        return [failure for future in found for failure in future.result()]


def toolchain() -> str:
    """The versions that compiled code depends on."""
    return f"torch {version('torch')}, triton {version('triton')}"


def _feed(
    child: Child,
    queue: "SimpleQueue[KernelVariant]",
    done: Callable[[], None],
    failures: list[CompileFailure],
    limit_s: float,
) -> bool:
    """Give the child kernels until there are no more; True if it has ended before."""
    while True:
        try:
            variant = queue.get_nowait()
        except Empty:
            return False
        answer = child.ask(base64.b64encode(pickle.dumps(variant)).decode(), limit_s)
        done()
        if answer:
            failures.append(CompileFailure(variant.name, answer))
        if answer is None:
            failures.append(CompileFailure(variant.name, child.how_it_ended()))
            return True


def _with_progress(variants: Sequence[KernelVariant], architecture: int) -> list[CompileFailure]:
    console = Console(stderr=True)
    console.print(
        f"compiling {len(variants)} kernels for sm_{architecture}, once on this machine",
        highlight=False,
    )
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(variants))
        return compile_variants(variants, architecture, lambda: progress.advance(task))


def _marker(variants: Sequence[KernelVariant], architecture: int) -> Path:
    """A file in Triton's cache that exists once all variants have been compiled into it."""
    from triton import knobs

    text = f"{architecture} {toolchain()} {source_hash()} {sorted(map(repr, variants))}"
    return Path(knobs.cache.dir) / f"hybrid-{sha256(text.encode()).hexdigest()[:32]}.compiled"
