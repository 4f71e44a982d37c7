"""The conditions of an experiment: its policies, with one condition for every point of a grid."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.errors import PolicyError, Problem, did_you_mean
from hybrid.experiments.definition import Experiment, PolicyEntry
from hybrid.policies.document import Document, Location
from hybrid.policies.loader import load_policy, parse_policy
from hybrid.policies.schema import Policy


@dataclass(frozen=True, slots=True)
class Condition:
    """One policy under test; `group` is its name in the file, `values` its point in the grid."""

    name: str
    group: str
    policy: Policy
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All that the policy says, defaults included, as JSON with sorted keys."""
        return json.dumps(self.policy.model_dump(mode="json"), sort_keys=True)

    @property
    def digest(self) -> str:
        """Equal for policies that say the same."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def list_conditions(experiment: Experiment, document: Document, folder: Path) -> list[Condition]:
    """Every policy of the experiment; files are looked for in `folder`. Raises PolicyError."""
    conditions: list[Condition] = []
    problems: list[Problem] = []
    for group, given in experiment.policies.items():
        try:
            conditions += _expand(group, given, document, folder)
        except PolicyError as error:
            problems += error.problems
    names = [condition.name for condition in conditions]
    wanted = experiment.baseline
    if wanted is not None and wanted not in names and not problems:
        hint = did_you_mean(wanted, names) or f"; there are {', '.join(names)}"
        problems.append(document.at(("baseline",), f"no policy is named {wanted!r}{hint}"))
    for index, group in enumerate(experiment.frontier):
        if group not in experiment.policies:
            hint = did_you_mean(group, experiment.policies)
            message = f"no policy is named {group!r}{hint}"
            problems.append(document.at(("frontier", index), message))
    if problems:
        raise PolicyError(problems)
    return conditions


def _expand(group: str, given: PolicyEntry, document: Document, folder: Path) -> list[Condition]:
    location: Location = ("policies", group)
    base = _base(given, document, folder, location)
    if not given.vary:
        return [Condition(group, group, base, {})]
    conditions = []
    for values in itertools.product(*given.vary.values()):
        chosen = dict(zip(given.vary, values, strict=True))
        changed = deepcopy(dict(base._values))
        for path, value in chosen.items():
            _set(changed, path.split("."), value)
        said = ", ".join(f"{path.split('.')[-1]}={_short(v)}" for path, v in chosen.items())
        name = f"{group} {said}"
        try:
            policy = parse_policy(json.dumps(changed), name)
        except PolicyError as error:
            raise PolicyError(_blame(error, given.vary, document, location)) from None
        conditions.append(Condition(name, group, policy, chosen))
    return conditions


def _base(given: PolicyEntry, document: Document, folder: Path, location: Location) -> Policy:
    if given.inline is not None:
        values = {"version": 1, **given.inline}
        try:
            return parse_policy(json.dumps(values), str(location[-1]), folder)
        except PolicyError as error:
            raise PolicyError(
                document.at((*location, "inline", *_path(problem.key)), problem.message)
                for problem in error.problems
            ) from None
    assert given.policy is not None
    beside = folder / given.policy
    try:
        return load_policy(beside if beside.is_file() else given.policy)
    except PolicyError as error:
        first = error.problems[0]
        if first.line:  # in the policy's own file
            raise
        raise PolicyError([document.at((*location, "policy"), first.message)]) from None


def _blame(
    error: PolicyError,
    vary: Mapping[str, Sequence[Any]],
    document: Document,
    location: Location,
) -> list[Problem]:
    """A grid's problems at the path of the grid that they came from."""
    problems = []
    for problem in error.problems:
        near = [path for path in vary if _touches(path, problem.key)]
        where = (*location, "vary", near[0]) if near else (*location, "vary")
        problems.append(document.at(where, f"{problem.key}: {problem.message}", at_key=True))
    return problems


def _touches(path: str, key: str) -> bool:
    shorter, longer = sorted((path.split("."), key.split(".")), key=len)
    return longer[: len(shorter)] == shorter


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        below = values.get(name)
        values[name] = below if isinstance(below, dict) else {}
        values = values[name]
    values[last] = value


def _path(key: str) -> list[str]:
    return key.split(".") if key else []


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
