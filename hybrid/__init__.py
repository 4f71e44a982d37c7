"""Draft with a diffusion language model, refine with an autoregressive one, under a policy.

    from hybrid import Hybrid

    with Hybrid.from_policy("balanced") as hybrid:
        print(hybrid.generate("sort up: 4 8 1 9 3", budget="300ms").text)

The public names are listed once, in `__init__.pyi`, which type checkers read too. Each is loaded on
first use, so importing hybrid imports neither torch nor pydantic.
"""

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_HOME_OF = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
