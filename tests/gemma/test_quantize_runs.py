"""Runs of `hybrid quantize` over several files: killed, out of room, and decoded by other code."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybrid.cli import main
from hybrid.engine.load import load_engine
from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.quantize import Job, Parts, Quantizer
from hybrid.gemma.checkpoint.resume_state import LOCK
from hybrid.gemma.checkpoint.resume_state import NAME as STATE
from hybrid.gemma.model.gemma import load_model
from tests.gemma.nvfp4_folders import split_experts, write_shards
from tests.gemma.test_gemma_checkpoint import answer

Make = Callable[..., tuple[Any, Path]]
FORMATS = ("modelopt", "compressed-tensors")
CLASSES = {"experts": ".experts.", "mlp": ".mlp.", "attention": ".self_attn."}
CHOSEN: dict[Parts, set[str]] = {
    "experts": {"experts"},
    "experts+mlp": {"experts", "mlp"},
    "all": {"experts", "mlp", "attention"},
}


@pytest.fixture(scope="module")
def source(make_diffusion: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 folder of three files."""
    model, saved = make_diffusion()
    model.to(torch.bfloat16).save_pretrained(saved)
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("source") / "model"))
    write_shards(folder, 3)
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder, read by the format's own library."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def decoded(tensors: dict[str, Tensor], linear: str, spelling: str) -> Any:
    """A matrix from its bytes in float64, by the tables of the two formats."""
    is_modelopt = spelling == "modelopt"
    packed = tensors[f"{linear}.weight" if is_modelopt else f"{linear}.weight_packed"].numpy()
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
    values = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6))[codes & 7] * np.where(codes & 8, -1, 1)
    bits = tensors[f"{linear}.weight_scale"].view(torch.uint8).numpy().astype(np.int64)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    scales = np.where(
        exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9
    ) * np.where(bits & 128, -1, 1)
    values *= scales.repeat(16, axis=1)
    if is_modelopt:
        return values * tensors[f"{linear}.weight_scale_2"].double().numpy()
    return values / tensors[f"{linear}.weight_global_scale"].double().numpy()


def by_the_library(tensors: dict[str, Tensor], linear: str, spelling: str) -> Tensor:
    """A matrix as compressed-tensors unpacks it; ModelOpt's factor is its reciprocal there."""
    library = pytest.importorskip("compressed_tensors.compressors.nvfp4.base").NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme

    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights})
    if spelling == "modelopt":
        packed = tensors[f"{linear}.weight"]
        divisor = 1 / tensors[f"{linear}.weight_scale_2"].reshape(1)
    else:
        packed = tensors[f"{linear}.weight_packed"]
        divisor = tensors[f"{linear}.weight_global_scale"]
    scale = tensors[f"{linear}.weight_scale"]
    state = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": divisor}
    weight: Tensor = library.decompress(state, scheme)["weight"]
    return weight


@pytest.mark.parametrize("spelling", FORMATS)
@pytest.mark.parametrize("parts", CHOSEN)
def test_every_matrix_of_the_chosen_classes_by_independent_decoders(
    source: Path,
    tmp_path: Path,
    parts: Parts,
    spelling: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "out"
    assert main(["quantize", str(source), str(target), "--format", spelling, "--only", parts]) == 0
    reported = capsys.readouterr().out
    tensors, kinds = stored(target), set[str]()
    for name, weight in split_experts(stored(source)).items():
        kind = next((kind for kind, word in CLASSES.items() if word in name), "")
        linear = name.removesuffix(".weight")
        is_linear = weight.dim() == 2 and "vision" not in name
        if not is_linear or kind not in CHOSEN[parts]:
            if name in tensors:
                assert tensors[name].dtype == weight.dtype and torch.equal(tensors[name], weight)
            continue
        kinds.add(kind)
        found = torch.from_numpy(decoded(tensors, linear, spelling))
        library = by_the_library(tensors, linear, spelling)
        torch.testing.assert_close(library.double(), found, rtol=2**-8, atol=0)
        # The widest step is from 4 to 6, in sixths of a block's largest number; its scale is
        # rounded to four bits, and what is too large for it is cut.
        largest = weight.double().view(len(weight), -1, 16).abs().amax(-1, keepdim=True)
        lost = (found - weight.double()).view(len(weight), -1, 16).abs()
        assert (lost <= (1 / 6 + 1 / 16) * largest).all(), name
    assert kinds == CHOSEN[parts]
    assert all((kind in reported) == (kind in kinds) for kind in CLASSES)
    engine = load_engine(target, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(answer(engine), answer(load_model(target)), rtol=1e-4, atol=1e-4)


# The command, which stands still at its Nth tensor.
STOPPING = """
import sys, time
from hybrid.cli import main
from hybrid.gemma.checkpoint.shard_writer import ShardWriter
write, left = ShardWriter.write, [int(sys.argv[1])]
def stopping(writer, name, tensor):
    write(writer, name, tensor)
    left[0] -= 1
    if not left[0]:
        writer._stream.flush()
        print("standing", flush=True)
        time.sleep(600)
ShardWriter.write = stopping
main(["quantize", *sys.argv[2:]])
"""


@contextmanager
def standing(count: int, words: list[str]) -> Iterator[None]:
    """The command, standing still at its `count`-th tensor; it is killed in the end."""
    command = [sys.executable, "-c", STOPPING, str(count), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "standing\n"
        try:
            yield
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def killed(count: int, words: list[str]) -> None:
    """Run the command to its `count`-th tensor, and kill it there."""
    with standing(count, words):
        pass


@pytest.mark.parametrize("spelling", FORMATS)
def test_a_killed_run_goes_on_where_it_was(source: Path, tmp_path: Path, spelling: str) -> None:
    whole, target = tmp_path / "whole", tmp_path / "out"
    options = ["--format", spelling, "--only", "all"]
    assert main(["quantize", str(source), str(whole), *options]) == 0
    words = [str(source), str(target), *options]
    first, second, third = (f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3))
    killed(3, words)
    assert {file.name for file in target.iterdir()} == {STATE, LOCK, f"{first}.partial"}
    killed(len(load_file(whole / first)) + 5, words)
    assert {file.name for file in target.iterdir()} == {STATE, LOCK, first, f"{second}.partial"}
    finished = (target / first).stat()
    assert main(["quantize", *words]) == 0
    after = (target / first).stat()
    assert (after.st_ino, after.st_mtime_ns) == (finished.st_ino, finished.st_mtime_ns)
    assert contents(target) == contents(whole)
    assert (target / third).exists()


def test_a_file_that_is_gone_is_made_again(source: Path, tmp_path: Path) -> None:
    """Whatever the resume state says. A job that has finished nothing does not stand in the way."""
    whole, target = tmp_path / "whole", tmp_path / "out"
    assert main(["quantize", str(source), str(whole)]) == 0
    killed(3, [str(source), str(target), "--only", "all"])
    first = "model-00001-of-00003.safetensors"
    killed(len(load_file(whole / first)) + 1, [str(source), str(target)])
    (target / first).unlink()
    assert main(["quantize", str(source), str(target)]) == 0
    assert contents(target) == contents(whole)


def test_another_job_does_not_go_on_in_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    words = [str(copy), str(target)]
    killed(130, words)
    (copy / "model-00003-of-00003.safetensors").touch()
    for other in ([*words, "--only", "all"], words):
        assert main(["quantize", *other]) == 2
        assert "the unfinished one of the same call on the same files" in capsys.readouterr().err


def test_too_little_room_is_said_before_anything_is_written(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert main(["quantize", str(source), str(tmp_path / "out")]) == 2
    assert "GB of disk, and 0.00 GB are free" in capsys.readouterr().err
    assert main(["quantize", str(source), str(tmp_path / "out")]) == 0


def with_files_up_to(size: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """The command where no file can become larger than `size` bytes, as on a disk that is full."""
    code = f"from hybrid.cli import main; raise SystemExit(main({words!r}))"

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-c", code]
    return subprocess.run(command, preexec_fn=little_room, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("size", "file"),
    [
        (16, STATE),  # enough to look for a temporary folder, which libraries do
        (20_000, "model-00001-of-00003.safetensors"),
        (2_000_000, "large.txt"),
    ],
)
def test_a_disk_that_fills_up_meanwhile(source: Path, tmp_path: Path, size: int, file: str) -> None:
    """One line that names the file; what is finished stays, nothing else, and the run can go on."""
    folder, whole, target = tmp_path / "source", tmp_path / "whole", tmp_path / "out"
    shutil.copytree(source, folder)
    (folder / "large.txt").write_bytes(bytes(2_100_000))
    assert main(["quantize", str(folder), str(whole)]) == 0
    words = ["quantize", str(folder), str(target)]
    done = with_files_up_to(size, words)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [f"error: {target / file}: File too large"]
    left = {name for name in contents(target) if not name.endswith(".partial")}
    if file == "large.txt":
        assert {STATE, *(shard.name for shard in whole.glob("*.safetensors"))} <= left
        assert "config.json" not in left
    else:
        assert left == (set() if file == STATE else {STATE})
    assert main(words) == 0
    assert contents(target) == contents(whole)


@pytest.mark.parametrize(
    "blocked", ["model-00002-of-00003.safetensors.partial", f"{STATE}.partial", LOCK]
)
def test_a_file_that_cannot_be_written(source: Path, tmp_path: Path, blocked: str) -> None:
    """A folder stands in its place: one line that names it, and the run can go on without it."""
    target = tmp_path / "out"
    words = [str(source), str(target)]
    killed(3, words)
    (target / blocked).unlink(missing_ok=True)
    (target / blocked).mkdir()
    done = with_files_up_to(2**30, ["quantize", *words])
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {target / blocked}: Is a directory"
    (target / blocked).rmdir()
    assert main(["quantize", *words]) == 0


def test_a_second_run_is_kept_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, with nothing changed, also for another job; a killed run stands in nobody's way."""
    whole, target = tmp_path / "whole", tmp_path / "out"
    assert main(["quantize", str(source), str(whole)]) == 0
    words = [str(source), str(target)]
    with standing(130, words):
        before = contents(target)
        for options in ([], ["--only", "all"]):
            capsys.readouterr()
            assert main(["quantize", *words, *options]) == 2
            assert f"{target}: another run writes there" in capsys.readouterr().err
        assert contents(target) == before
    assert (target / LOCK).exists()
    assert main(["quantize", *words]) == 0
    assert contents(target) == contents(whole)


def test_a_damaged_resume_state(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    killed(3, [str(source), str(target)])
    for text in ("", "[]", '{"job": 1}', '{"job": 1, "records": 2}'):
        (target / STATE).write_text(text)
        with (
            pytest.raises(CheckpointError, match=r"\.quantize\.json: is damaged; remove this"),
            Quantizer(Job(source, target, "modelopt", "experts")),
        ):
            pass


def test_a_target_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError) as raised, Quantizer(Job(source, target, "modelopt", "all")):
            pass
        assert str(raised.value.filename).startswith(str(tmp_path / "file"))
