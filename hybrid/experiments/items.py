"""Items: what is asked, the reference, and the name of the scorer that compares answers with it.

A task file is data. A line may choose among the scorers by name, but never names a function, and
never `code`, which runs the reference: those stand in the experiment file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.errors import PolicyError, RequestError, did_you_mean
from hybrid.experiments.definition import COLUMNS, TaskSet
from hybrid.experiments.reasoning_gym import draw_items
from hybrid.experiments.records import item_digest
from hybrid.experiments.scorers import CODE, EMBEDDED, LIKELIHOOD, REASONING_GYM, SCORERS, Scorers
from hybrid.experiments.task_files import Row, read_rows
from hybrid.policies.document import Document, Location
from hybrid.requests import make_request
from hybrid.types import Message

_ITEMS = 50  # of a generated task, where the experiment does not say
_BY_NAME = sorted({*SCORERS, LIKELIHOOD} - {CODE, REASONING_GYM})  # that a line may choose


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt or a conversation, its reference and scorer, and the task that it belongs to.

    `number` counts within the task from 0. Of a conversation, `prompt` is the last message. `id`
    and `metadata` are the task file's own; they are recorded, and scorers of yours may read them.
    """

    task: str
    number: int
    prompt: str
    reference: str
    scorer: str
    id: str = ""
    messages: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for equal items, whatever their number."""
        return item_digest(
            self.prompt, self.task, self.reference, self.scorer, self.messages, self.metadata
        )

    @property
    def question(self) -> str | list[Message]:
        """What is asked, as `make_request` takes it."""
        return list(self.messages) or self.prompt


def list_items(
    sets: list[TaskSet], document: Document, folder: Path, scorers: Scorers
) -> list[Item]:
    """Every item of the task sets.

    Raises PolicyError for what the experiment says, and RequestError, with file and line, for what
    a task file says.
    """
    items: list[Item] = []
    for index, given in enumerate(sets):
        location: Location = ("tasks", index) if _is_list(document) else ("tasks",)
        try:
            if given.scorer is not None:
                scorers.check(given.scorer)
            found = [] if given.file is not None else _generate(given)
        except ValueError as error:
            key, _, message = str(error).partition(": ")
            raise PolicyError([document.at((*location, key), message)]) from None
        if given.file is not None:
            found = _read(given, folder)
        items += found
        if not found:
            raise RequestError("tasks", given.file or "tasks", "at least one item")
    numbers: dict[str, int] = {}
    for index, item in enumerate(items):
        number = numbers[item.task] = numbers.get(item.task, -1) + 1
        items[index] = replace(item, number=number)
    return items


def _is_list(document: Document) -> bool:
    return isinstance(document.values.get("tasks"), list)


def _generate(given: TaskSet) -> list[Item]:
    """Items of the embedded tasks or of reasoning-gym; raises ValueError: `key: message`."""
    from hybrid.embedded.tasks import TASKS, experiment_set

    count = given.items or _ITEMS
    if given.reasoning_gym:
        drawn = draw_items(given.reasoning_gym, count, given.seed)
        return [
            Item(name, 0, one["question"], str(one["answer"]), REASONING_GYM, metadata=one)
            for name, one in drawn
        ]
    wanted = [*TASKS] if given.embedded == "all" else list(given.embedded or ())
    for name in wanted:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS)
            raise ValueError(f"embedded: no task is named {name!r}; {[*TASKS]}{hint}")
    scorer = given.scorer or EMBEDDED
    return [
        Item(one.task, 0, one.prompt, one.answer, scorer)
        for name in wanted
        for one in experiment_set(name, count)
    ]


def _read(given: TaskSet, folder: Path) -> list[Item]:
    items = list(_parse(given, folder / str(given.file)))
    if given.items is None:
        return items
    counts: dict[str, int] = {}
    kept = []
    for item in items:
        counts[item.task] = counts.get(item.task, 0) + 1
        if counts[item.task] <= given.items:
            kept.append(item)
    return kept


def _parse(given: TaskSet, file: Path) -> Iterator[Item]:
    """The items of a file, whose columns may have other names."""
    names = {theirs: ours for ours, theirs in given.columns.items()}
    for row in read_rows(file):
        values = {names.get(key, key): value for key, value in row.values.items()}
        unknown = [key for key in values if key not in COLUMNS]
        if unknown and row.is_table:  # a table's other columns
            rest = {key: values.pop(key) for key in unknown}
            values["metadata"] = {**(values.get("metadata") or {}), **rest}
        elif unknown:
            hint = did_you_mean(unknown[0], COLUMNS)
            allowed = f"known are {', '.join(COLUMNS)}{hint}; all else belongs into metadata"
            raise RequestError(row.where, unknown[0], allowed)
        yield _item(values, given, row, file.stem)


def _item(values: Mapping[str, Any], given: TaskSet, row: Row, stem: str) -> Item:
    prompt, turns = values.get("prompt"), values.get("messages")
    is_prompt = isinstance(prompt, str) and turns is None
    if not is_prompt and not (isinstance(turns, list) and prompt is None):
        allowed = "an object with a prompt, which is text, or messages, which are a list"
        raise RequestError(row.where, row.text, allowed)
    asked = turns if prompt is None else prompt
    assert asked is not None
    try:
        request = make_request(asked, {})
    except RequestError as error:
        raise RequestError(f"{row.where}: {error.field}", error.given, error.allowed) from None
    task = values.get("task") or given.task or stem
    if not isinstance(task, str):
        raise RequestError(f"{row.where}: task", task, "text")
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise RequestError(f"{row.where}: metadata", metadata, "an object")
    reference = values.get("reference")
    return Item(
        task=task,
        number=0,
        prompt=request.conversation[-1].content,
        reference=reference if isinstance(reference, str) else row.as_text(reference),
        scorer=_scorer(values.get("scorer"), given, row),
        id=str(values.get("id") or ""),
        messages=request.messages,
        metadata=metadata,
    )


def _scorer(chosen: object, given: TaskSet, row: Row) -> str:
    """A line's own scorer, or the task set's."""
    if chosen is None:
        return given.scorer or "exact"
    if isinstance(chosen, str) and chosen in _BY_NAME:
        return chosen
    field = f"{row.where}: scorer"
    if chosen == CODE or (isinstance(chosen, str) and ":" in chosen):
        raise RequestError(field, chosen, "name it in the experiment file: data runs no code")
    raise RequestError(field, chosen, f"one of {_BY_NAME}{did_you_mean(str(chosen), _BY_NAME)}")
