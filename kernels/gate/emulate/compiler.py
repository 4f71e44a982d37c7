"""A launch compiled to PTX for a GPU that is not here, without assembling it.

Triton keeps what it has compiled in a folder. PTX without machine code goes into one of its own,
`emulated` beside the others, so that no GPU ever gets an empty program from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.kernels.gate.compilation import source_of
from hybrid.kernels.launch import Launch


@dataclass(frozen=True, slots=True)
class Compiled:
    """PTX text, threads and bytes of shared memory of a CTA, and values of what it is called with,
    in order.
    """

    ptx: str
    threads: int
    shared_bytes: int
    values: tuple[Any, ...]


def compile_ptx(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch for compute capability `architecture`; raises whatever Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget

    source = source_of(launch)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    with _without_assembler():
        kernel = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
    names = [name for name, kind in source.signature.items() if kind != "constexpr"]
    return Compiled(
        ptx=kernel.asm["ptx"],
        threads=32 * kernel.metadata.num_warps,
        shared_bytes=kernel.metadata.shared,
        values=tuple(launch.arguments[name] for name in names),
    )


@contextmanager
def _without_assembler() -> Iterator[None]:
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDABackend

    def no_machine_code(*_: Any) -> bytes:
        return b""

    assemble = CUDABackend.make_cubin
    with knobs.cache.scope():
        knobs.cache.dir = str(Path(knobs.cache.dir).parent / "emulated")
        CUDABackend.make_cubin = no_machine_code
        try:
            yield
        finally:
            CUDABackend.make_cubin = assemble
