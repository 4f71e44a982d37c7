"""Procedurally generated tasks of the PyPI package reasoning-gym, with its own scorers.

Its scorers may evaluate an answer (sympy parses with `eval`), so they run in a confined process:
see `hybrid.experiments.sandbox.score`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid.errors import CapabilityError, did_you_mean

Datasets = Mapping[str, Mapping[str, Any]]  # name and settings


def draw_items(datasets: Datasets, count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """`count` entries of each dataset, the same for a seed: name, and question, answer, metadata.

    Raises ValueError (`key: message`) for an unknown dataset or setting, CapabilityError without
    the package.
    """
    import json

    factory = _package()
    for name, settings in datasets.items():
        if name not in factory.DATASETS:
            hint = did_you_mean(name, factory.DATASETS)
            raise ValueError(f"reasoning_gym: no dataset is named {name!r}{hint}")
        try:
            made = factory.create_dataset(name, **{**settings, "size": count, "seed": seed})
            entries = [made[index] for index in range(count)]
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"reasoning_gym: {name}: {error}") from None
        for entry in entries:
            yield name, json.loads(json.dumps(entry, default=str))


def known_datasets() -> Sequence[str]:
    """The names of all datasets; raises CapabilityError without the package."""
    return sorted(_package().DATASETS)


def _package() -> Any:
    try:
        from reasoning_gym import factory
    except ModuleNotFoundError as error:
        hint = f"{error.name} is missing: install the extra 'reasoning-gym'"
        raise CapabilityError("reasoning_gym tasks", "this installation", hint) from None
    return factory
