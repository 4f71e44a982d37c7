"""Cheap facts about a request; decisions are the planner's."""

from collections.abc import Callable

from hybrid.errors import RequestError, did_you_mean
from hybrid.policies.schema import Policy
from hybrid.types import Request, Signals, TaskSource


def gather(
    request: Request,
    prompt_tokens: int,
    blank_tokens: int,
    recognise: Callable[[str], str | None] | None,
    policy: Policy,
) -> Signals:
    """The request's signals; raises RequestError for a task that the policy does not know.

    The task is the one given, else the one that the model recognises in the last message, if the
    policy knows it.
    """
    task, source = _task(request, recognise, policy)
    section = policy.tasks.get(task) if task else None
    expected = (section and section.expected_tokens) or policy.defaults.expected_tokens
    return Signals(prompt_tokens, task, source, blank_tokens or expected, blank_tokens)


def _task(
    request: Request, recognise: Callable[[str], str | None] | None, policy: Policy
) -> tuple[str | None, TaskSource]:
    if request.task is not None:
        if request.task not in policy.tasks:
            allowed = f"policy {policy.name} knows {', '.join(policy.tasks) or 'no tasks'}"
            hint = did_you_mean(request.task, policy.tasks)
            raise RequestError("task", request.task, allowed + hint)
        return request.task, "given"
    found = recognise(request.conversation[-1].content) if recognise else None
    return (found, "recognised") if found in policy.tasks else (None, "default")
