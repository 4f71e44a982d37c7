"""`hybrid doctor`: what this machine can do, and a fix for everything that fails.

Each check is one line: ✓ good, ! works with less, ✗ broken. Only ✗ makes the exit code 1.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from hybrid.cli.render import printable
from hybrid.cli.run import Flag
from hybrid.cli.terminal import Terminal

if TYPE_CHECKING:
    from hybrid.kernels.proof import Proof

Status = Literal["good", "less", "broken"]
SIGNS: dict[Status, tuple[str, str]] = {
    "good": ("✓", "green"),
    "less": ("!", "yellow"),
    "broken": ("✗", "red"),
}
KNOWN_MODELS = (
    "google/diffusiongemma-26B-A4B-it",
    "nvidia/diffusiongemma-26B-A4B-it-NVFP4",
    "RedHatAI/diffusiongemma-26B-A4B-it-NVFP4",
    "google/gemma-4-26B-A4B-it",
    "nvidia/Gemma-4-26B-A4B-NVFP4",
    "RedHatAI/gemma-4-26B-A4B-it-NVFP4",
)
_PROMPT = "add 12 + 34"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome; `fix` says what to do unless it is good."""

    check: str
    status: Status
    message: str
    fix: str = ""


def doctor(
    *,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    report_file: Annotated[Path | None, Parameter(name="--report")] = None,
) -> int:
    """Check this machine, with one line that fixes each failure.

    Parameters
    ----------
    as_json
        Print one JSON object.
    report_file
        Also write the findings, versions and what was proved of the GPU to this file, as JSON, for
        a bug report. It has no prompts, answers or tokens, and "~" for the home folder.
    """
    findings = [run(check) for check in CHECKS]
    if report_file:
        report_file.write_text(machine_report(findings) + "\n")
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    else:
        Terminal().print(report(findings))
    return int(any(finding.status == "broken" for finding in findings))


def run(check: Callable[[], Finding]) -> Finding:
    """The check's finding; whatever it stumbles over is a finding too."""
    try:
        return check()
    except Exception as error:  # a doctor that falls ill helps nobody
        name = check.__name__.removeprefix("check_").replace("_", " ")
        fix = "install hybrid again: pip install --force-reinstall hybrid-gemma"
        return Finding(name, "broken", f"{type(error).__name__}: {error}", fix)


def report(findings: Sequence[Finding]) -> Table:
    """A line a finding, and the fix under it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = SIGNS[finding.status]
        table.add_row(Text(sign, style), finding.check, Text(printable(finding.message)))
        if finding.fix:
            table.add_row("", "", Text(f"→ {printable(finding.fix)}", "dim"))
    return table


def machine_report(findings: Sequence[Finding]) -> str:
    """Findings, versions and the proof of the first GPU, if there is one, as JSON."""
    import torch

    from hybrid import __version__
    from hybrid.engine.proofs import kept_proof, proof_key

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    proof = kept_proof(device)
    found = {
        "hybrid": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": proof_key(device),
        "findings": [asdict(finding) for finding in findings],
        "proof": asdict(proof) if proof else None,
    }
    return json.dumps(found, indent=1).replace(str(Path.home()), "~")


def check_python() -> Finding:
    """Python's version."""
    system = f"{platform.system()} {platform.machine()}"
    return Finding("python", "good", f"{platform.python_version()} on {system}")


def check_torch() -> Finding:
    """PyTorch, its build and threads."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    threads = torch.get_num_threads()
    return Finding("torch", "good", f"{torch.__version__}, {build}, {threads} threads")


def check_transformers() -> Finding:
    """transformers, for chat templates, training and the second implementation."""
    return Finding("transformers", "good", version("transformers"))


def check_triton() -> Finding:
    """Triton, which GPU kernels are compiled with."""
    try:
        return Finding("triton", "good", version("triton"))
    except PackageNotFoundError:
        fix = "pip install triton (Linux only); models run on the CPU without it"
        return Finding("triton", "less", "not installed", fix)


def check_gpu() -> Finding:
    """NVIDIA GPUs, and what NVFP4 means on them."""
    import torch

    if not torch.cuda.is_available():
        fix = "nothing to fix where there is no GPU: models run on the CPU"
        return Finding("gpu", "less", "none that torch can use", fix)
    gpu = torch.cuda.get_device_properties(0)
    return judge_gpu(gpu.name, gpu.total_memory, gpu.major, gpu.minor)


def judge_gpu(name: str, size: int, major: int, minor: int) -> Finding:
    """What a GPU of so many bytes and this compute capability is good for."""
    from hybrid.kernels.launch import OLDEST_MAJOR

    which = f"{name}, {size / 2**30:.0f} GiB, sm_{major}{minor}"
    if major < OLDEST_MAJOR:
        fix = f"models run on the CPU; the kernels need sm_{OLDEST_MAJOR}0 (Ampere) or newer"
        return Finding("gpu", "less", f"{which}: too old for the kernels", fix)
    return Finding("gpu", "good", f"{which}: reads NVFP4 weights and multiplies in bfloat16")


def check_kernels() -> Finding:
    """Whether kernels compute on the GPU what they should; proves it if that is not known yet."""
    import torch

    if not torch.cuda.is_available():
        fix = "nothing to fix where there is no GPU; hybrid prove compares the references"
        return Finding("kernels", "less", "not proved: no GPU runs them", fix)
    from hybrid.engine.proofs import kept_proof, prove_device

    device = torch.device("cuda", 0)
    return judge_proof(kept_proof(device) or prove_device(device))


def judge_proof(proof: "Proof") -> Finding:
    """What a proof says of a GPU."""
    count, failures = len(proof.outcomes), proof.failures
    if not failures:
        return Finding("kernels", "good", f"{count} of {count} cases are right on this GPU")
    first = failures[0]
    message = f"{len(failures)} of {count} cases fail, first {first.case}: {first.detail}"
    fix = "hybrid prove shows all; models that need them are refused; please report it: --report"
    return Finding("kernels", "broken", message, fix)


def check_embedded_pair() -> Finding:
    """The embedded pair loads and answers."""
    from hybrid.backends import load_models
    from hybrid.policies.schema import ModelSection
    from hybrid.types import Request

    pair = load_models(ModelSection(), ModelSection())
    assert pair.drafter is not None and pair.refiner is not None
    session = pair.refiner.open(Request(_PROMPT), 8)
    session.score(())
    tokens = pair.drafter.count_prompt_tokens(Request(_PROMPT))
    return Finding("embedded pair", "good", f"loads and reads a prompt of {tokens} tokens")


def check_compiled() -> Finding:
    """Whether the embedded pair's passes are compiled for this machine."""
    from hybrid.artefacts import ArtefactError, artefact_of, read_artefact
    from hybrid.embedded import PairRole, weights_path

    fix = "hybrid compile (a few minutes, needs a C++ compiler such as g++)"
    try:
        kept = {role: read_artefact(artefact_of(weights_path(role))) for role in get_args(PairRole)}
    except ArtefactError as error:
        return Finding("compiled", "less", f"not used: {error}", fix)
    missing = [role for role, files in kept.items() if not files]
    if missing:
        return Finding("compiled", "less", f"not compiled: {' and '.join(missing)}", fix)
    passes = ", ".join(name for files in kept.values() for name in files)
    return Finding("compiled", "good", f"the embedded pair: {passes}")


def check_model_cache() -> Finding:
    """Published models that are already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    names = [name for name in KNOWN_MODELS if try_to_load_from_cache(name, "config.json")]
    if names:
        return Finding("models", "good", f"in the Hugging Face cache: {', '.join(names)}")
    fix = f"for a real model: hf download {KNOWN_MODELS[1]}"
    return Finding("models", "less", "no DiffusionGemma or Gemma 4 in the Hugging Face cache", fix)


def check_latency() -> Finding:
    """Whether latency is measured, and whether it can be kept."""
    from hybrid.policies.loader import load_policy
    from hybrid.policies.measurements import (
        Measurement,
        cache_file,
        is_writable,
        others,
        read_measurement,
    )

    policy = load_policy("balanced")
    file = cache_file(policy)
    kept = read_measurement(file)
    if isinstance(kept, Measurement):
        where = f", kept in {_short(file.parent)}"
        if kept.method == "calibrated":
            return Finding("latency", "good", kept.description + where)
        fix = "hybrid calibrate (a minute)"
        return Finding("latency", "less", kept.description.partition(";")[0] + where, fix)
    if not is_writable(file):
        existing = next(folder for folder in file.parents if folder.exists())
        fix = f"make {_short(existing)} a writable folder, or set XDG_CACHE_HOME to one"
        return Finding("latency", "broken", f"cannot be kept: {existing} is not writable", fix)
    fix = "hybrid calibrate (a minute), or the first request measures it, in about a second"
    if kept.reason:
        return Finding("latency", "less", f"{_short(file)} {kept.reason}: not used", fix)
    elsewhere = others(file, policy)
    if elsewhere:
        said = f"measured for {elsewhere[0]} only: not used here"
        return Finding("latency", "less", said, fix)
    return Finding("latency", "less", f"not measured yet; will be kept in {file.parent}", fix)


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if str(path).startswith(home) else str(path)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_triton,
    check_transformers,
    check_gpu,
    check_kernels,
    check_embedded_pair,
    check_compiled,
    check_model_cache,
    check_latency,
)
