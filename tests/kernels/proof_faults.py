"""The worker of the proof with a fault in it: `python -m proof_faults FAULT`."""

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hybrid.kernels import linear, proof_worker
from hybrid.kernels.launch import interpreted
from hybrid.kernels.nvfp4 import PackedMatrix

right = linear.linear


def wrong_decode(x: Tensor, weight: Any) -> Tensor:
    """The two halves of every word exchanged, as inline assembly in the wrong order did."""
    if isinstance(weight, PackedMatrix):
        words = weight.words
        weight = replace(weight, words=(words << 16) | (words >> 16 & 0xFFFF))
    return right(x, weight)


def hang(x: Tensor, weight: Any) -> Tensor:
    time.sleep(600)
    return right(x, weight)


def abort(x: Tensor, weight: Any) -> Tensor:
    os.abort()


def sticky(x: Tensor, weight: Any) -> Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def leaks(x: Tensor, weight: Any) -> Tensor:
    """Every row gets something of all others."""
    return right(x, weight) + 0 * x.sum()


def does_not_compile(x: Tensor, weight: Any) -> Tensor:
    raise ValueError("no layout for this tile")


FAULTS = {f.__name__: f for f in (wrong_decode, hang, abort, sticky, leaks, does_not_compile)}

if __name__ == "__main__":
    mode: AbstractContextManager[None] = nullcontext()
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.interpreter import correct

        correct()
        mode = interpreted()
    linear.linear = FAULTS.get(sys.argv[1], right)
    torch.set_num_threads(1)
    with mode:
        proof_worker.main("cpu")
