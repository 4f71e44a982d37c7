"""What an experiment's folder says about itself, beside its records.

Everything that decides whether a record still belongs to the experiment is here: the policies as
they are written out, and the digest of every item.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hybrid import __version__
from hybrid.experiments.arms import Arm
from hybrid.experiments.definition import Experiment
from hybrid.experiments.items import Item
from hybrid.policies.latency import LatencyModel
from hybrid.policies.measurements import costs_to_json, hardware, versions


def describe(
    experiment: Experiment,
    text: str,
    arms: Sequence[Arm],
    items: Sequence[Item],
    costs: Mapping[str, LatencyModel],
) -> dict[str, Any]:
    """An experiment whose YAML is `text`, and the machine that it is about to run on.

    `items` holds digests by task, in the items' order; `costs` are by pair of models.
    """
    digests: dict[str, list[str]] = {}
    for item in items:
        digests.setdefault(item.task, []).append(item.digest)
    return {
        "experiment": experiment.model_dump(mode="json"),
        "text": text,
        "baseline": experiment.baseline or arms[0].name,
        "arms": [_describe(arm) for arm in arms],
        "items": digests,
        "costs": {key: costs_to_json(one) for key, one in costs.items()},
        "version": __version__,
        "versions": versions(),
        "python": platform.python_version(),
        "hardware": hardware(),
        "command": [_near(argument) for argument in sys.argv[1:]],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _near(argument: str) -> str:
    """A path as seen from where the command was run, of others the name: records are shown to
    others.
    """
    option, equals, path = argument.rpartition("=") if argument[:1] == "-" else ("", "", argument)
    if not os.path.isabs(path):
        return argument
    near = os.path.relpath(path)
    return option + equals + (os.path.basename(path) if near.startswith(os.pardir) else near)


def _describe(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "group": arm.group,
        "digest": arm.digest,
        "values": dict(arm.values),
        "policy": json.loads(arm.text),
    }
