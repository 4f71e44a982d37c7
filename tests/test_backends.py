"""From a policy's choice of models to working ones."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hybrid.backends import DRAFTERS, REFINERS, Models, find_model, load_models
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.huggingface import HuggingFaceDrafter
from hybrid.embedded import weights_path
from hybrid.errors import (
    BackendError,
    CapabilityError,
    CheckpointError,
    PolicyError,
    RequestError,
)
from hybrid.policies.loader import parse_policy
from hybrid.policies.schema import Policy, RefinerModelSection
from hybrid.protocols import DraftJob
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import Activations, DraftParams, Request


@dataclass(frozen=True)
class Choice:
    backend: str = "native"
    model: str = "embedded"
    device: str = "auto"
    activations: Activations = "float"


def answer(models: Models) -> tuple[int, ...]:
    assert models.drafter is not None
    job = DraftJob(Request("add 12 + 34"), DraftParams(4), 1, 32, Deadline())
    return models.drafter.draft([job])[0].token_ids


def test_a_choice_names_its_implementation() -> None:
    native = load_models(Choice(), Choice())
    assert type(native.drafter) is DiffusionGemmaDrafter
    assert type(native.refiner) is GemmaRefiner
    other = load_models(Choice("huggingface"), None)
    assert type(other.drafter) is HuggingFaceDrafter
    assert other.refiner is None
    assert answer(native) == answer(other)


def test_only_the_embedded_pair_knows_its_tasks() -> None:
    embedded = load_models(Choice(), None)
    assert embedded.recognise is not None and embedded.phrase is not None
    assert embedded.quality
    folder = load_models(Choice(model=str(weights_path("drafter"))), None)
    assert folder.recognise is None and folder.phrase is None
    assert not folder.quality
    assert answer(embedded) == answer(folder)


@pytest.mark.parametrize(
    ("change", "is_pair"),
    [
        (lambda text: text + "{# the same for every conversation #}", True),
        (lambda text: text.replace("<|model>{% endif %}", "<|model> {% endif %}"), False),
        (lambda text: text.replace("'system' }}>", "'user' }}>"), False),
    ],
)
def test_a_pair_writes_conversations_alike(
    tmp_path: Path, change: Callable[[str], str], is_pair: bool
) -> None:
    folder = Path(shutil.copytree(weights_path("refiner"), tmp_path / "refiner"))
    file = folder / "chat_template.jinja"
    changed = change(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    pair = Choice(model=str(weights_path("drafter"))), Choice(model=str(folder))
    if is_pair:
        assert load_models(*pair).prompt_format is not None
    else:
        with pytest.raises(CapabilityError, match="write prompts differently"):
            load_models(*pair)


def test_no_choice_loads_nothing() -> None:
    models = load_models(None, None)
    assert models.drafter is None and models.refiner is None


@pytest.mark.parametrize(
    ("drafter", "refiner", "field", "allowed"),
    [
        (Choice("nativ"), None, "models.drafter.backend", "did you mean 'native'"),
        (None, Choice("vlm"), "models.refiner.backend", "did you mean 'vllm'"),
    ],
)
def test_an_unknown_backend_is_named(
    drafter: Choice | None, refiner: Choice | None, field: str, allowed: str
) -> None:
    with pytest.raises(RequestError, match=allowed) as caught:
        load_models(drafter, refiner)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("backend", "words"),
    [("native", "on cpu: .* Blackwell"), ("huggingface", "on transformers: .* must be float")],
)
def test_four_bit_activations_are_refused_where_there_are_none(backend: str, words: str) -> None:
    choice = Choice(backend, device="cpu", activations="nvfp4")
    for pair in ((choice, None), (None, choice)):
        with pytest.raises(CapabilityError, match=words):
            load_models(*pair)


def test_policies_ask_only_the_native_stack_for_four_bit_activations() -> None:
    def read(backend: str) -> Policy:
        text = f"{{refiner: {{backend: {backend}, activations: nvfp4}}}}"
        return parse_policy(f"version: 1\nmodels: {text}\n", "test")

    for backend in ("huggingface", "vllm"):
        with pytest.raises(PolicyError, match=f"is for backend native, not {backend}"):
            read(backend)
    with pytest.raises(CapabilityError, match="Blackwell"):
        load_models(None, read("native").models.refiner)


@pytest.mark.parametrize(("role", "backends"), [("drafter", DRAFTERS), ("refiner", REFINERS)])
def test_policies_may_name_the_backends_that_there_are(role: str, backends: dict[str, str]) -> None:
    def read(backend: str) -> None:
        url = ", url: 'http://x/v1'" if backend == "vllm" else ""
        parse_policy(f"version: 1\nmodels: {{{role}: {{backend: {backend}{url}}}}}\n", "test")

    for backend in backends:
        read(backend)
    for backend in {*DRAFTERS, *REFINERS, "sglang"} - {*backends}:
        with pytest.raises(PolicyError, match=f"models.{role}.backend"):
            read(backend)


@pytest.mark.parametrize(
    "model", ["nothing", "./no/folder", "/no/folder", "~/x", "a/b/c", "a/b@", "@a/b"]
)
def test_a_model_that_is_nowhere_is_told_from_one_of_the_hub(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_model(model, "drafter")


def test_the_roles_of_the_models_are_checked() -> None:
    refiner = Choice(model=str(weights_path("refiner")))
    with pytest.raises(CheckpointError, match="no canvas"):
        load_models(refiner, None)


def test_hub_names_with_a_revision_are_found_in_the_cache_offline(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--org--name"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40), ("refs/pr/1", "c" * 40)):
        (hub / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (hub / "refs" / revision).write_text(commit)
        snapshot = hub / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")

    def find(model: str) -> str:
        code = "import sys; from hybrid.backends import find_model; "
        code += "print(find_model(sys.argv[1], 'drafter').name)"
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        environment.pop("HF_HUB_CACHE", None)
        command = [sys.executable, "-c", code, model]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    assert find("org/name") == "a" * 40
    assert find("org/name@v2") == "b" * 40
    assert find("org/name@refs/pr/1") == "c" * 40
    assert "hf download org/name --revision v3" in find("org/name@v3")
    missing = find("org/other")
    assert "BackendError" in missing and "hf download org/other" in missing


@pytest.mark.parametrize(
    ("model", "error", "retryable"),
    [
        ("org/na me", None, False),
        ("org/name", RepositoryNotFoundError, False),
        ("org/name@v9", RevisionNotFoundError, False),
        ("org/name", ConnectionError, True),
    ],
)
def test_a_hub_that_gives_nothing_says_whether_to_try_again(
    model: str,
    error: type[Exception] | None,
    retryable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object, **options: object) -> None:
        assert error
        raise error.__new__(error, "not today")  # the library's own want a response to come from

    if error:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BackendError, match=f"load: {model}: ") as raised:
        find_model(model, "drafter")
    assert raised.value.retryable is retryable


def test_a_backend_whose_package_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("vllm", "server"):
        monkeypatch.delitem(sys.modules, f"hybrid.refiners.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    server = RefinerModelSection(backend="vllm", url="http://127.0.0.1:9/v1")
    with pytest.raises(CapabilityError, match=r"httpx is not installed.*extra 'remote'"):
        load_models(None, server)
