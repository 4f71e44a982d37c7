"""`experiment.json` in a run's folder: what was asked, of which policies, on what machine.

It decides which records belong to the experiment: it has the digest of every policy and item.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hybrid import __version__
from hybrid.experiments.conditions import Condition
from hybrid.experiments.definition import Experiment
from hybrid.experiments.items import Item
from hybrid.policies.latency import LatencyModel
from hybrid.policies.measurements import costs_to_json, hardware, versions


def build_manifest(
    experiment: Experiment,
    text: str,
    conditions: Sequence[Condition],
    items: Sequence[Item],
    costs: Mapping[str, LatencyModel],
) -> dict[str, Any]:
    """The manifest of an experiment whose YAML is `text`, on this machine.

    `items` holds digests by task, in the items' order; `costs` are by pair of models.
    """
    digests: dict[str, list[str]] = {}
    for item in items:
        digests.setdefault(item.task, []).append(item.digest)
    return {
        "experiment": experiment.model_dump(mode="json"),
        "text": text,
        "baseline": experiment.baseline or conditions[0].name,
        "conditions": [_describe(condition) for condition in conditions],
        "items": digests,
        "costs": {key: costs_to_json(one) for key, one in costs.items()},
        "version": __version__,
        "versions": versions(),
        "python": platform.python_version(),
        "hardware": hardware(),
        "command": [_relative(argument) for argument in sys.argv[1:]],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _relative(argument: str) -> str:
    """A path relative to the current folder, and only the name of one outside it: records are
    published, and absolute paths tell who ran them.
    """
    option, equals, path = argument.rpartition("=") if argument[:1] == "-" else ("", "", argument)
    if not os.path.isabs(path):
        return argument
    near = os.path.relpath(path)
    return option + equals + (os.path.basename(path) if near.startswith(os.pardir) else near)


def _describe(condition: Condition) -> dict[str, Any]:
    return {
        "name": condition.name,
        "group": condition.group,
        "digest": condition.digest,
        "values": dict(condition.values),
        "policy": json.loads(condition.text),
    }
