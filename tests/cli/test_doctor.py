"""`hybrid doctor`: one line a check, one line a fix."""

import json
from pathlib import Path

import pytest

from hybrid.cli import main
from hybrid.cli.doctor import CHECKS, Finding, judge_gpu, judge_proof, machine_report, report, run
from hybrid.cli.terminal import Terminal
from hybrid.kernels.proof import Proof, ProofOutcome


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_working_machine_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for check in ("python", "torch", "triton", "transformers", "gpu", "embedded pair", "models"):
        assert check in out
    assert "✗" not in out


def test_everything_that_is_not_good_has_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert len(findings) == len(CHECKS)
    for finding in findings:
        assert bool(finding["fix"]) == (finding["status"] != "good")


def test_a_cache_that_cannot_be_written_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✗" in out
    assert "XDG_CACHE_HOME" in out


def test_a_check_that_falls_over_is_a_finding() -> None:
    def check_spirits() -> Finding:
        raise RuntimeError("low\x1b[31m")

    finding = run(check_spirits)
    assert (finding.check, finding.status) == ("spirits", "broken")
    assert "RuntimeError: low" in finding.message
    console = Terminal(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report([finding]))
    assert "\x1b" not in console.export_text()


@pytest.mark.parametrize(
    ("major", "status", "said"),
    [(7, "less", "too old"), (8, "good", "NVFP4"), (9, "good", "NVFP4"), (12, "good", "sm_120")],
)
def test_what_a_gpu_is_good_for(major: int, status: str, said: str) -> None:
    finding = judge_gpu("Card", 80 * 2**30, major, 0)
    assert finding.status == status
    assert said in finding.message
    assert "80 GiB" in finding.message


def test_a_report_has_what_a_bug_report_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    findings = [Finding("models", "good", f"in {tmp_path}/models")]
    found = json.loads(machine_report(findings))
    assert {"hybrid", "python", "system", "device", "findings", "proof"} == {*found}
    assert {"torch", "triton", "ptxas", "kernels", "driver"} <= {*found["device"]}
    assert found["findings"][0]["message"] == "in ~/models"


def test_kernels_that_fail_are_broken_and_named() -> None:
    def outcome(passed: bool) -> ProofOutcome:
        return ProofOutcome("head, 64", "head", "", passed, 0.5, 1e-3, 0.1, 1e-3, None, None, "off")

    assert judge_proof(Proof({}, (outcome(True),))).status == "good"
    finding = judge_proof(Proof({}, (outcome(True), outcome(False))))
    assert finding.status == "broken"
    assert "1 of 2 cases fail, first head, 64: off" in finding.message
