"""The policies that a server answers under: one name each, one pair of models for all.

A policy's name is what clients send as `model`. Files are watched: a change is in force from the
next request on, and one that is broken or names other models leaves the policy as it was.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock

from hybrid.api import Hybrid
from hybrid.errors import PolicyError, RequestError, did_you_mean
from hybrid.policies.loader import load_policy, preset_names
from hybrid.policies.schema import Policy
from hybrid.policies.watch import WatchedPolicy
from hybrid.serve.errors import ApiError

_log = logging.getLogger("hybrid.serve")
DEFAULT_MODEL = "hybrid"  # whichever policy is the first


class ServedPolicy:
    """One policy under its name, and the `Hybrid` that answers under it."""

    def __init__(self, name: str, source: Policy | WatchedPolicy, hybrid: Hybrid) -> None:
        self.name, self._source = name, source
        self._hybrid, self._lock = hybrid, Lock()
        self._refused: Policy | PolicyError | None = None
        self._sha = digest(hybrid.policy)

    def current(self) -> tuple[Hybrid, str]:
        """Who answers now, and the digest of the policy in force."""
        if isinstance(self._source, WatchedPolicy):
            with self._lock:
                self._look(self._source)
                return self._hybrid, self._sha
        return self._hybrid, self._sha

    def _look(self, source: WatchedPolicy) -> None:
        policy = source.current()
        if policy is self._hybrid.policy or policy is self._refused:
            return
        try:
            self._hybrid, self._sha = self._hybrid.under(policy), digest(policy)
        except RequestError as error:
            self._refused = policy
            _log.warning(
                "policy %s stays as it was; restart for other models: %s", self.name, error
            )


class ServedPolicies(Mapping[str, ServedPolicy]):
    """All policies by name; the first is also called `hybrid`."""

    def __init__(self, served: Sequence[ServedPolicy]) -> None:
        self._served = {one.name: one for one in served}
        self.default = served[0]

    def __getitem__(self, name: str) -> ServedPolicy:
        return self.default if name == DEFAULT_MODEL else self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)

    def find(self, name: str) -> ServedPolicy:
        """The policy of that name; raises ApiError (404)."""
        try:
            return self[name]
        except KeyError:
            known = [DEFAULT_MODEL, *self]
            hint = did_you_mean(name, known)
            message = f"model: {name[:80]!r} is not served here; one of {', '.join(known)}{hint}"
            raise ApiError(404, message, "model_not_found", "model") from None

    def reload(self) -> None:
        """Look at all files now rather than at the next request."""
        for served in self._served.values():
            served.current()

    @property
    def longest_budget_s(self) -> float | None:
        """The longest that a policy names, None if none does."""
        budgets: list[float | None] = []
        for served in self._served.values():
            policy = served.current()[0].policy
            budgets += [policy.defaults.budget, *policy.effort.values()]
            budgets += [task.budget for task in policy.tasks.values()]
            budgets += [rule.budget for rule in policy.rules]
        return max((budget for budget in budgets if budget is not None), default=None)


def serve_policies(policies: Sequence[str | Path | Policy], workers: int = 0) -> ServedPolicies:
    """Policies by preset, file or value, the first of which decides the models.

    None given are `balanced` and every preset for the same models. Raises PolicyError, and
    RequestError for two of one name or a policy for other models.
    """
    sources = [_source(policy) for policy in policies or ["balanced"]]
    if not policies:
        models = sources[0][1].models if isinstance(sources[0][1], Policy) else None
        presets = [load_policy(name) for name in preset_names() if name != "balanced"]
        sources += [(policy.name, policy) for policy in presets if policy.models == models]
    first = sources[0][1]
    hybrid = Hybrid(first, workers=workers)
    served: list[ServedPolicy] = []
    for name, source in sources:
        if name in (DEFAULT_MODEL, *(one.name for one in served)):
            raise RequestError("policy", name, "a name of its own: rename the file")
        current = source.current() if isinstance(source, WatchedPolicy) else source
        view = hybrid.under(current)
        served.append(ServedPolicy(name, source, view))
    return ServedPolicies(served)


def serve_hybrid(hybrid: Hybrid) -> ServedPolicies:
    """A `Hybrid` of the application's own, under its policy's name."""
    policy = hybrid.policy
    return ServedPolicies([ServedPolicy(_stem(policy.name), policy, hybrid)])


def digest(policy: Policy) -> str:
    """Equal for policies that say the same."""
    return hashlib.sha256(policy.model_dump_json().encode()).hexdigest()[:16]


def _source(given: str | Path | Policy) -> tuple[str, Policy | WatchedPolicy]:
    if isinstance(given, Policy):
        return _stem(given.name), given
    if str(given) in preset_names():
        return str(given), load_policy(given)
    return _stem(str(given)), WatchedPolicy(given)


def _stem(name: str) -> str:
    """A file's name without folders and ending: clients never see a path."""
    return Path(name).stem or name
