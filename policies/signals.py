"""Cheap facts about a request; decisions are the planner's."""

from collections.abc import Callable, Mapping

from hybrid.errors import RequestError, did_you_mean
from hybrid.policies.classifier import classify
from hybrid.policies.schema import Policy
from hybrid.types import Request, Signals, SignalValue, TaskSource

_LEAST_CONFIDENCE = 0.5  # below it, the defaults serve better than a guess


def gather(
    request: Request,
    prompt_tokens: int,
    blank_tokens: int,
    recognise: Callable[[str], str | None] | None,
    policy: Policy,
    custom: Mapping[str, SignalValue] | None = None,
    load: int = 0,
    length_hint: int = 0,
) -> Signals:
    """The request's signals; raises RequestError for a task that the policy does not know.

    The task is the one given; else, of those that the policy knows, the one that the model
    recognises in the last message; else, for a model that can recognise none, what the words say.
    """
    task, source, confidence = _task(request, recognise, policy)
    section = policy.tasks.get(task) if task else None
    expected = (section and section.expected_tokens) or policy.defaults.expected_tokens
    length = blank_tokens or expected
    return Signals(
        prompt_tokens=prompt_tokens,
        task=task,
        task_source=source,
        expected_tokens=length,
        blank_tokens=blank_tokens,
        constraints=len(request.checks),
        task_confidence=confidence,
        load=load,
        length_hint=length_hint,
        custom=custom or {},
    )


def _task(
    request: Request, recognise: Callable[[str], str | None] | None, policy: Policy
) -> tuple[str | None, TaskSource, float]:
    if request.task is not None:
        if request.task not in policy.tasks:
            allowed = f"policy {policy.name} knows {', '.join(policy.tasks) or 'no tasks'}"
            hint = did_you_mean(request.task, policy.tasks)
            raise RequestError("task", request.task, allowed + hint)
        return request.task, "given", 1.0
    prompt = request.question
    if recognise is not None:
        found = recognise(prompt)
        return (found, "recognised", 1.0) if found in policy.tasks else (None, "default", 1.0)
    found, confidence = classify(prompt, policy.tasks)
    if confidence < _LEAST_CONFIDENCE:
        return None, "default", 1.0
    return found, "classified", confidence
