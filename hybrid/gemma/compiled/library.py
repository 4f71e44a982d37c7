"""A compiled pass in a shared library, called without the interpreter's lock.

PyTorch's own loader keeps the lock while a pass runs: two threads on two cores took 2.9 ms for a
step of each, and 1.5 ms so, as long as one alone (the embedded drafter). So the library's C
functions are called directly; tensors cross over as PyTorch's generated code has them do.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class LibraryError(Exception):
    """A library that cannot be loaded, or a pass in it that failed."""


class Library:
    """One pass. As many threads may be in it at a time as `concurrency` says; others wait."""

    def __init__(self, file: Path, concurrency: int) -> None:
        try:
            self._functions = ctypes.CDLL(str(file))
            self._take, self._give = (
                torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors,
                torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs,
            )
            self._container = ctypes.c_void_p()
            self._check(
                self._functions.AOTInductorModelContainerCreateWithDevice(
                    ctypes.byref(self._container), ctypes.c_size_t(concurrency), b"cpu", None
                )
            )
            self._inputs = self._count("Inputs")
            self._outputs = self._count("Outputs")
            self._run = self._functions.AOTInductorModelContainerRun
        except (OSError, AttributeError) as error:
            raise LibraryError(f"{file.name}: {error}") from None

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The pass's outputs; raises LibraryError.

        Nothing is checked but their number: dtypes, shapes and layouts must be as compiled for.
        """
        if len(tensors) != self._inputs:
            raise LibraryError(f"takes {self._inputs} tensors, not {len(tensors)}")
        handles = [_pointer(capsule, None) for capsule in self._take(list(tensors))]
        inputs = (ctypes.c_void_p * self._inputs)(*handles)  # the library frees them
        outputs = (ctypes.c_void_p * self._outputs)()
        self._check(
            self._run(
                self._container,
                inputs,
                ctypes.c_size_t(self._inputs),
                outputs,
                ctypes.c_size_t(self._outputs),
                None,
                None,
            )
        )
        given: list[Tensor] = self._give([_capsule(output, None, None) for output in outputs])
        return given

    def __del__(self) -> None:
        if container := getattr(self, "_container", None):
            self._functions.AOTInductorModelContainerDelete(container)

    def _count(self, what: str) -> int:
        count = ctypes.c_size_t()
        function = getattr(self._functions, f"AOTInductorModelContainerGetNum{what}")
        self._check(function(self._container, ctypes.byref(count)))
        return count.value

    def _check(self, status: int) -> None:
        if status:
            raise LibraryError(f"a compiled pass failed with status {status}")
