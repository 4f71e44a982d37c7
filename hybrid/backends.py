"""From names in a policy to working models: the one place that knows every backend.

A backend is "module:Class", imported when a policy first asks for it, so that nobody pays for torch
before a model is needed. A model is `embedded` (the pair in this package), a folder, or a name on
the Hugging Face hub.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from hybrid.errors import BackendError, CapabilityError, CheckpointError, RequestError, did_you_mean
from hybrid.policies.quality import read_quality
from hybrid.policies.schema import QualitySection
from hybrid.protocols import Drafter, Refiner
from hybrid.types import Activations, PromptFormat

EMBEDDED = "embedded"
DRAFTERS = {
    "native": "hybrid.drafters.diffusion_gemma:DiffusionGemmaDrafter",
    "huggingface": "hybrid.drafters.huggingface:HuggingFaceDrafter",
}
REFINERS = {
    "native": "hybrid.refiners.gemma:GemmaRefiner",
    "huggingface": "hybrid.refiners.huggingface:HuggingFaceRefiner",
    "vllm": "hybrid.refiners.vllm:VllmRefiner",
}
_SERVERS = {"vllm"}
_SETTINGS, _WEIGHTS = ("*.json", "*.jinja"), ("*.safetensors",)


class ModelChoice(Protocol):
    """A policy's `models.drafter` or `models.refiner`."""

    @property
    def backend(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def activations(self) -> Activations: ...


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded pair, and hooks for what is known of the prompts that it was trained on.

    `recognise` names the trained task that a prompt asks for; `phrase` puts a prompt for a task, by
    name, into words that the pair was trained on; `length_hint` reads a number in it that may tell
    how long the answer is; `note` says what a reader of the answer must know, empty for nothing.
    `quality` are its measured accuracies.
    """

    drafter: Drafter | None
    refiner: Refiner | None
    recognise: Callable[[str], str | None] | None = None
    phrase: Callable[[str, str], str] | None = None
    quality: Mapping[str, QualitySection] = field(default_factory=dict)
    length_hint: Callable[[str], int] = lambda prompt: 0
    note: Callable[[str], str] = lambda prompt: ""

    @property
    def prompt_format(self) -> PromptFormat | None:
        """How conversations are written, None for models without a chat template."""
        reader = self.drafter or self.refiner
        return reader.prompt_format if reader else None


def load_models(drafter: ModelChoice | None, refiner: ModelChoice | None) -> Models:
    """Load what a policy names; raises CheckpointError, CapabilityError or BackendError.

    CapabilityError also for a pair whose token ids do not mean the same, that writes conversations
    in two ways, or that one device cannot hold.
    """
    if drafter and refiner and drafter.backend == refiner.backend == "native":
        _require_memory(drafter, refiner)
    pair = Models(
        drafter=_load(DRAFTERS, drafter, "drafter") if drafter else None,
        refiner=_load(REFINERS, refiner, "refiner") if refiner else None,
    )
    if drafter and refiner and pair.drafter and pair.refiner and drafter.model != refiner.model:
        _compare(drafter.model, pair.drafter.vocabulary, refiner.model, pair.refiner.vocabulary)
        _compare_formats(drafter.model, pair.drafter, refiner.model, pair.refiner)
    if any(choice and choice.model != EMBEDDED for choice in (drafter, refiner)):
        return pair
    from hybrid.embedded import EVALUATION, tasks

    return replace(
        pair,
        recognise=tasks.recognise,
        phrase=tasks.phrase,
        quality=read_quality(EVALUATION),
        length_hint=tasks.length_hint,
        note=tasks.note,
    )


def _load(
    backends: Mapping[str, str], choice: ModelChoice, role: Literal["drafter", "refiner"]
) -> Any:
    if choice.backend not in backends:
        hint = did_you_mean(choice.backend, backends)
        raise RequestError(f"models.{role}.backend", choice.backend, f"one of {[*backends]}{hint}")
    module, _, name = backends[choice.backend].partition(":")
    is_remote = choice.backend in _SERVERS
    folder = find_model(choice.model, role, with_weights=not is_remote)
    try:
        kind = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed; install hybrid with the extra 'remote'"
        raise CapabilityError(f"backend {choice.backend}", "this installation", missing) from None
    if is_remote:
        return kind.connect(folder, choice)
    return kind.from_directory(folder, choice.device, choice.activations)


def _require_memory(drafter: ModelChoice, refiner: ModelChoice) -> None:
    """Refuse a pair that one GPU cannot hold before a minute goes into loading the first."""
    from hybrid.engine.load import require_pair_memory

    require_pair_memory(
        find_model(drafter.model, "drafter"),
        drafter.device,
        find_model(refiner.model, "refiner"),
        refiner.device,
    )


def _compare(
    drafter: str, drafters: Mapping[str, int], refiner: str, refiners: Mapping[str, int]
) -> None:
    """A refiner reads the drafter's token ids, so both must mean the same by them."""
    if drafters == refiners:
        return
    different = {*drafters.items()} ^ {*refiners.items()}
    text = min(different, key=lambda pair: pair[1])[0]
    operation = f"drafter {drafter} ({len(drafters)} tokens) with refiner {refiner}"
    missing = (
        f"the refiner's {len(refiners)} tokens are others: {text!r} is {drafters.get(text)} to the "
        f"one and {refiners.get(text)} to the other; a pair shares its tokenizer"
    )
    raise CapabilityError(operation, "any device", missing)


def _compare_formats(drafter: str, first: Drafter, refiner: str, second: Refiner) -> None:
    """Both must read the same prompt: a draft is judged after the prompt that it was written to."""
    one, other = first.prompt_format, second.prompt_format
    if one is None or other is None or one.rendering == other.rendering:
        return
    missing = (
        f"their chat templates write prompts differently (sha256 {one.template[:12]} and "
        f"{other.template[:12]}); give both folders the same chat_template.jinja"
    )
    raise CapabilityError(f"drafter {drafter} with refiner {refiner}", "any device", missing)


def find_model(model: str, role: Literal["drafter", "refiner"], with_weights: bool = True) -> Path:
    """The folder of a model: the embedded one, a local folder, or a hub snapshot (downloaded).

    A hub name may say which revision: `org/name@revision`, a branch, tag or commit.
    """
    from hybrid.embedded import weights_path

    if model == EMBEDDED:
        return weights_path(role)
    if Path(model).is_dir():
        return Path(model)
    name, at, revision = model.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or (at and not revision):
        raise CheckpointError(model, f"no such folder; give {EMBEDDED!r}, a folder or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    final = HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    try:
        patterns = [*_SETTINGS, *(_WEIGHTS if with_weights else ())]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many unrelated types
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        hint = f"try {command}; HF_TOKEN opens gated models, HF_HUB_OFFLINE forbids network"
        retryable = not isinstance(error, final)
        raise BackendError("load", f"{model}: {error}; {hint}", retryable) from error
