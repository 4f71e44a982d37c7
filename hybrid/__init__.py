"""Draft with a diffusion language model, refine with an autoregressive one, under a policy.

Names load on first use: importing hybrid imports neither torch nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid.api import AsyncHybrid, Hybrid
    from hybrid.backends import Models
    from hybrid.errors import (
        BackendError,
        Cancelled,
        CapabilityError,
        CheckpointError,
        DeadlineExceeded,
        HybridError,
        PolicyError,
        RequestError,
    )
    from hybrid.policies.loader import load_policy
    from hybrid.types import (
        Denoised,
        Drafted,
        Event,
        Finished,
        Message,
        Patched,
        Plan,
        Planned,
        Request,
        Result,
    )

__version__ = "0.1.0"

_HOMES = {
    "hybrid.api": ("AsyncHybrid", "Hybrid"),
    "hybrid.backends": ("Models",),
    "hybrid.errors": (
        "BackendError",
        "Cancelled",
        "CapabilityError",
        "CheckpointError",
        "DeadlineExceeded",
        "HybridError",
        "PolicyError",
        "RequestError",
    ),
    "hybrid.policies.loader": ("load_policy",),
    "hybrid.types": (
        "Denoised",
        "Drafted",
        "Event",
        "Finished",
        "Message",
        "Patched",
        "Plan",
        "Planned",
        "Request",
        "Result",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncHybrid",
    "BackendError",
    "Cancelled",
    "CapabilityError",
    "CheckpointError",
    "DeadlineExceeded",
    "Denoised",
    "Drafted",
    "Event",
    "Finished",
    "Hybrid",
    "HybridError",
    "Message",
    "Models",
    "Patched",
    "Plan",
    "Planned",
    "PolicyError",
    "Request",
    "RequestError",
    "Result",
    "__version__",
    "load_policy",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
