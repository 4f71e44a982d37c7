"""Items: prompts with a reference, and the scorer that compares answers with it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import RequestError, did_you_mean
from hybrid.experiments.definition import TaskSet
from hybrid.experiments.records import item_digest
from hybrid.experiments.scorers import EMBEDDED, check_scorer

_KEYS = ("prompt", "reference", "task", "scorer")
_ITEMS = 50  # of an embedded task, where nothing is said; more are generated on demand


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, what a right answer is compared with, and the task that it belongs to.

    `number` is its index within the task.
    """

    task: str
    number: int
    prompt: str
    reference: str
    scorer: str

    @property
    def digest(self) -> str:
        """Equal for items that are, wherever they stand."""
        return item_digest(self.prompt, self.task, self.reference, self.scorer)


def list_items(sets: list[TaskSet], folder: Path) -> list[Item]:
    """Every item of the task sets; raises RequestError, which names file and line."""
    items: list[Item] = []
    for given in sets:
        found = _read(given, folder) if given.file is not None else _draw(given)
        items += found
        if not found:
            raise RequestError("tasks", given.file or given.embedded, "at least one item")
    numbers: dict[str, int] = {}
    for index, item in enumerate(items):
        number = numbers[item.task] = numbers.get(item.task, -1) + 1
        items[index] = Item(item.task, number, item.prompt, item.reference, item.scorer)
    return items


def _draw(given: TaskSet) -> list[Item]:
    from hybrid.embedded.tasks import TASKS, experiment_set

    wanted = [*TASKS] if given.embedded == "all" else list(given.embedded or ())
    for name in wanted:
        if name not in TASKS:
            raise RequestError("tasks.embedded", name, f"{[*TASKS]}{did_you_mean(name, TASKS)}")
    scorer = given.scorer or EMBEDDED
    check_scorer(scorer)
    return [
        Item(one.task, 0, one.prompt, one.answer, scorer)
        for name in wanted
        for one in experiment_set(name, given.items or _ITEMS)
    ]


def _read(given: TaskSet, folder: Path) -> list[Item]:
    file = folder / str(given.file)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("tasks.file", str(file), f"a UTF-8 text file ({error})") from None
    items = list(_parse(lines, given, file))
    if given.items is None:
        return items
    counts: dict[str, int] = {}
    kept = []
    for item in items:
        counts[item.task] = counts.get(item.task, 0) + 1
        if counts[item.task] <= given.items:
            kept.append(item)
    return kept


def _parse(lines: list[str], given: TaskSet, file: Path) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(where, line[:60], f"one JSON object a line ({error})") from None
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            raise RequestError(where, line[:60], "an object with a prompt, which is text")
        unknown = [key for key in values if key not in _KEYS]
        if unknown:
            hint = did_you_mean(unknown[0], _KEYS)
            raise RequestError(where, unknown[0], f"known are {', '.join(_KEYS)}{hint}")
        reference = values.get("reference", "")
        text = reference if isinstance(reference, str) else json.dumps(reference)
        scorer = values.get("scorer") or given.scorer or "exact"
        check_scorer(scorer, where)
        yield Item(values.get("task") or given.task or file.stem, 0, values["prompt"], text, scorer)
