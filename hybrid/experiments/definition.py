"""What an experiment file may say: task sets, policies and grids over them, seeds and load.

An experiment compares policies on the same prompts with the same seeds. Everything that is measured
is a policy: the refiner alone, a draft of fixed steps, a hybrid within a budget.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from hybrid.errors import PolicyError, Problem
from hybrid.files import read_regular_file
from hybrid.policies.document import Document
from hybrid.policies.schema import Section

COLUMNS = ("prompt", "messages", "reference", "task", "scorer", "id", "metadata")
MAX_BYTES = 1 << 20  # of an experiment file
_NAME = re.compile(r"\w(?:[\w +,.-]{0,98}\w)?")
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{d}{n}" for d in ("COM", "LPT") for n in range(10)}


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _as_datasets(value: object) -> object:
    return {name: {} for name in value} if isinstance(value, list) else value


def _is_folder_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.upper().partition(".")[0] in _RESERVED:
        raise ValueError(
            f"{name!r:.60} is no name of a folder: up to 100 letters, digits and ' _+,-.', "
            "a letter or digit first and last"
        )
    return name


def _as_policy(value: object) -> object:
    return {"policy": value} if isinstance(value, str) else value


class TaskSet(Section):
    """Prompts with references: embedded tasks, a file, or datasets of reasoning-gym."""

    embedded: list[str] | Literal["all"] | None = Field(
        default=None, description="Names of embedded tasks, or all; held-out prompts only."
    )
    file: str | None = Field(
        default=None, description="JSON lines, CSV or Parquet; its name ends in .csv or .parquet."
    )
    columns: dict[str, str] = Field(
        default={}, description="Columns of the file by what they are: {prompt: question}."
    )
    reasoning_gym: Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_datasets)] = Field(
        default={}, description="Datasets of reasoning-gym: a list of names, or settings by name."
    )
    seed: int = Field(default=0, ge=0, description="What reasoning-gym generates its items from.")
    items: int | None = Field(default=None, ge=1, description="At most so many of each task.")
    scorer: str | None = Field(
        default=None, description="exact, contains, ... or module:function; see the documentation."
    )
    task: str | None = Field(default=None, description="The policy's task, where lines name none.")

    @model_validator(mode="after")
    def _has_one_source(self) -> "TaskSet":
        sources = [self.embedded is not None, self.file is not None, bool(self.reasoning_gym)]
        if sum(sources) != 1:
            raise ValueError("a task set is embedded, a file or reasoning_gym, one of them")
        if self.columns and self.file is None:
            raise ValueError("columns are a file's")
        if self.reasoning_gym and (self.scorer or self.task) is not None:
            raise ValueError("reasoning_gym has scorers and names of tasks of its own")
        if unknown := self.columns.keys() - COLUMNS:
            raise ValueError(f"columns: {min(unknown)!r} is not one of {', '.join(COLUMNS)}")
        return self


class PolicyEntry(Section):
    """A policy, or a grid: one policy for every combination of values that fields take."""

    policy: str | None = Field(default=None, description="A preset's name or a policy file.")
    inline: dict[str, Any] | None = Field(default=None, description="A policy, written here.")
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="Values by the field's path, such as defaults.budget."
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> "PolicyEntry":
        if (self.policy is None) == (self.inline is None):
            raise ValueError("name a policy or write one inline, one of them")
        return self


class Load(Section):
    """How requests arrive: `clients` that each wait for their answer, or a Poisson stream."""

    clients: int = Field(default=1, ge=1, le=256, description="Requests in flight at a time.")
    rate: float | None = Field(default=None, gt=0, description="Arrivals a second instead.")


class Experiment(Section):
    """An experiment: every policy on every item of every task set, seed by seed."""

    version: Literal[1] = Field(description="Of this format.")
    name: Annotated[str, AfterValidator(_is_folder_name)] = Field(
        default="experiment", description="The report's title, and the folder of its records."
    )
    description: str = Field(default="", description="For people.")
    tasks: Annotated[list[TaskSet], BeforeValidator(_as_list), Field(min_length=1)]
    policies: dict[str, Annotated[PolicyEntry, BeforeValidator(_as_policy)]] = Field(min_length=1)
    baseline: str | None = Field(
        default=None, description="The policy that others are compared with; the first if not said."
    )
    frontier: list[str] = Field(
        default=[], description="The policies in the report's first picture; all if not said."
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    repeats: int = Field(default=1, ge=1, description="Times that each request is made.")
    load: Load = Load()


def load_experiment(path: Path) -> tuple[Experiment, Document]:
    """The experiment in a file, and its places; raises PolicyError with every problem."""
    try:
        text = read_regular_file(path, MAX_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise PolicyError([Problem(str(path), 0, 0, "", f"cannot be read: {error}")]) from None
    return parse_experiment(text, str(path))


def parse_experiment(text: str, name: str) -> tuple[Experiment, Document]:
    """The experiment that a YAML text describes, and its places."""
    document = Document(name, text, os.environ, Experiment, "an experiment")
    problems = set(document.problems)
    try:
        experiment = Experiment.model_validate(document.values)
    except ValidationError as error:
        problems |= {document.problem(details) for details in error.errors(include_url=False)}
    if problems:
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.column, p.key)))
    return experiment, document
