"""`python -m hybrid.engine.compile_worker ARCHITECTURE`: compiles kernels into Triton's cache.

Each line of input is a pickled `KernelVariant` in base 64, each line of output an error, or empty.
It holds no device: Triton is given a driver that only knows the architecture, and then does exactly
what it does at a launch, so that cache keys are the same.
"""

import base64
import os
import pickle
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hybrid.engine.kernel_hashes import hash_kernels

if TYPE_CHECKING:
    from hybrid.engine.compile_ahead import KernelVariant


class CompileOnlyDriver:
    """What `JITFunction.warmup` asks a driver for."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> Any:
        """The GPU that is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._architecture, 32)


class Pointer:
    """In place of a tensor: a dtype and an address."""

    def __init__(self, dtype: torch.dtype, is_aligned: bool) -> None:
        self.dtype, self._address = dtype, 16 if is_aligned else 8

    def data_ptr(self) -> int:
        """The address, of which only the alignment counts."""
        return self._address


def compile_variant(variant: "KernelVariant") -> Any:
    """Triton's compiled kernel, taken from its cache or put into it."""
    kernel = getattr(import_module(variant.module), variant.name)
    pointers = {name: Pointer(*parts) for name, parts in variant.pointers.items()}
    return kernel.warmup(
        **pointers,
        **variant.numbers,
        grid=(1,),
        num_warps=variant.num_warps,
        num_stages=variant.num_stages,
    )


def main() -> None:
    """Compile until the input ends."""
    from triton.runtime import driver

    driver.set_active(CompileOnlyDriver(int(sys.argv[1])))
    hash_kernels()
    outbox = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints
    for line in sys.stdin:
        try:
            compile_variant(pickle.loads(base64.b64decode(line)))
            answer = ""
        except Exception as error:  # compilers raise many unrelated types
            answer = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
        outbox.write(answer + "\n")
        outbox.flush()


if __name__ == "__main__":
    main()
