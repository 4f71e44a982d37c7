"""`hybrid compile`, and what `hybrid doctor` says of what it keeps."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hybrid.artefacts import MANIFEST, artefact_of, read_artefact, write_artefact
from hybrid.cli import main
from hybrid.embedded import weights_path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def compiled_finding(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    found: dict[str, str] = next(one for one in findings if one["check"] == "compiled")
    return found


def test_without_a_compiler_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["compile"]) == 2
    assert "no-such-compiler, a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_policy_without_a_model_on_a_cpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "remote.yaml"
    policy.write_text(
        "version: 1\nmodels:\n  drafter: {model: embedded, device: cuda}\n"
        "  refiner: {model: embedded, device: cuda}\n"
    )
    assert main(["compile", str(policy)]) == 2
    assert "no native model on a CPU" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_large_model_is_refused_before_its_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((weights_path("drafter") / "config.json").read_text())
    values["text_config"]["hidden_size"] = 2816
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(values))  # and no weights
    policy = tmp_path / "large.yaml"
    policy.write_text(
        f"version: 1\nmodels: {{drafter: {{model: {tmp_path}/large}}, refiner: null}}\n"
    )
    assert main(["compile", str(policy)]) == 2
    assert "hidden size of at most 512 gain; this one has 2816" in capsys.readouterr().err


def test_doctor_tells_what_is_compiled_missing_or_damaged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compiled_finding(capsys)["message"] == "not compiled: drafter and refiner"
    for role in ("drafter", "refiner"):
        write_artefact(artefact_of(weights_path(role)), {f"pass of the {role}": role.encode()})
    found = compiled_finding(capsys)
    assert (found["status"], found["fix"]) == ("good", "")
    assert "pass of the drafter, pass of the refiner" in found["message"]
    (artefact_of(weights_path("refiner")) / MANIFEST).write_text("{")
    found = compiled_finding(capsys)
    assert "damaged" in found["message"]
    assert "hybrid compile" in found["fix"]


def test_whoever_writes_last_is_whole_and_leftovers_go(tmp_path: Path) -> None:
    write_artefact(tmp_path, {"one": b"1", "two": b"2"})
    old = set(tmp_path.iterdir())
    write_artefact(tmp_path, {"one": b"3"})
    (file,) = read_artefact(tmp_path).values()
    assert file.read_bytes() == b"3"
    assert old < set(tmp_path.iterdir())  # somebody may be loading them
    for left in old:
        os.utime(left, (0, 0))
    write_artefact(tmp_path, {"one": b"3"})
    assert {one.name for one in tmp_path.iterdir()} == {file.name, MANIFEST}


def test_a_file_that_was_being_written_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "half.123.new").write_bytes(b"h")
    assert read_artefact(tmp_path) == {}
