"""Errors of a CUDA device, after which this process can no longer use it.

A kernel that reads a bad address leaves its CUDA context broken: every later call fails too, with
the same message and in another place. So the first such error is named, and nothing is asked of the
device afterwards; only a new process can use it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybrid.errors import BackendError
from hybrid.kernels.proof_worker import is_device_error

STAGE = "device"
_failed: dict[torch.device, str] = {}


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """An error of the device inside is a BackendError of stage "device", now and ever after."""
    require_working(device)
    try:
        yield
    except RuntimeError as error:
        if not is_device_error(error):
            raise
        _failed[device] = str(error).partition("\n")[0]
        raise _error(device) from error


def require_working(device: torch.device) -> None:
    """BackendError if the device has failed in this process."""
    if device in _failed:
        raise _error(device)


def _error(device: torch.device) -> BackendError:
    message = f"{device} failed: {_failed[device]}; this process cannot use it again, restart it"
    return BackendError(STAGE, message, retryable=True)
