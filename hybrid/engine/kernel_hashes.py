"""Triton's cache keys of our kernels, made equal in every process.

Triton hashes a kernel's source together with what it calls, and the hash of a kernel depends on
which kernels were hashed before it. With one order everywhere, what one process has compiled, the
next finds in the cache.
"""

from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules


@cache
def hash_kernels() -> None:
    """Hash every kernel in the order of their names; to be called before the first launch."""
    from triton.runtime.jit import JITFunction

    import hybrid.kernels.device as device

    for name in sorted(info.name for info in iter_modules(device.__path__)):
        module = import_module(f"hybrid.kernels.device.{name}")
        for attribute in sorted(vars(module)):
            kernel = getattr(module, attribute)
            if isinstance(kernel, JITFunction):
                _ = kernel.cache_key


@cache
def source_hash() -> str:
    """A hash of all source files in kernels/: what is known of kernels holds as long as it does."""
    import hybrid.kernels.launch as launch

    folder = Path(launch.__file__).parent
    total = sha256()
    for file in sorted(folder.rglob("*.py")):
        if "gate" not in file.relative_to(folder).parts:
            total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()[:16]
