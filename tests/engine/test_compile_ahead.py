"""Kernels are compiled before the first request, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.engine.compile_ahead import KernelVariant, compile_variants

ROOT = Path(__file__).parents[2]
KERNELS = """
import os, time
import triton

@triton.jit
def wrong(x):
    nothing_of_this_name(x)

class Aborting:
    def warmup(self, **settings):
        print("Assertion `layout' failed.", file=__import__("sys").stderr, flush=True)
        os.abort()

class Hanging:
    def warmup(self, **settings):
        time.sleep(600)

class Working:
    def warmup(self, **settings):
        return None

aborting, hanging, working = Aborting(), Hanging(), Working()
"""


def run(script: str, cache: Path) -> str:
    """The output of a script in which Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "benchmarks"))),
        "TRITON_CACHE_DIR": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


REQUESTS = """
import json, random
from dataclasses import replace
import torch
from hybrid.engine.canvases import Canvases
from hybrid.engine.warm_up import list_launches, variant, without_memory
from hybrid.kernels.launch import taken
from tests.engine.launches import _ids, _model

random.seed(5)
model = _model(("experts",), "float")
model.config = replace(model.config, max_position_embeddings=4096)
known = {variant(launch) for launch in list_launches(model, 90, 132)}
twin, launched = without_memory(model), []
with torch.inference_mode(), taken(90, launched.append, 132):
    for _ in range(40):
        rows = random.choice((1, 1, 2, 3, 5, 8))
        prompt, answer = random.randint(1, 3000), random.randint(1, 900)
        capacity = 1 << max(10, (prompt + answer - 1).bit_length())
        cache = twin.new_cache(rows, capacity, 256)
        twin.encode(_ids(rows, prompt), [prompt] * rows, cache, range(rows))
        size = 1 << (rows - 1).bit_length()
        if size == rows:
            canvases = Canvases(twin, rows)
            canvases.step(twin.kv_buffers(cache), _ids(rows), random.choice((0, 1, 4, 16)))
        read = random.randint(1, 256)
        hidden = twin.encode(_ids(rows, read), [read] * rows, cache, range(rows))
        twin.score(hidden[0], _ids(read))
        twin.logits(hidden[0])
new = {variant(launch) for launch in launched} - known
print(json.dumps([len(launched), sorted({str(name) for name, *_ in new})]))
"""


def test_requests_of_any_size_compile_nothing(tmp_path: Path) -> None:
    launched, new = json.loads(run(REQUESTS, tmp_path))
    assert launched > 1000
    assert new == []


IN_CACHE = """
import json, os
import hybrid.engine.compile_ahead as ahead
from hybrid.engine.compile_worker import CompileOnlyDriver, compile_variant
from hybrid.engine.kernel_hashes import hash_kernels
from hybrid.engine.warm_up import list_launches
from tests.engine.launches import _model
from triton.runtime import driver

wanted = "tokens_of", "condition_rows", "merge_scores"
launches = list_launches(_model((), "float"), 90, 132)
variants = [ahead.KernelVariant.of(x) for x in launches if x.kernel.__name__ in wanted]
failures = ahead.compile_variants(variants, 90, lambda: None, 1)
count = len(os.listdir(os.environ["TRITON_CACHE_DIR"]))
driver.set_active(CompileOnlyDriver(90))
hash_kernels()
for variant in reversed(variants):
    compile_variant(variant)
after = len(os.listdir(os.environ["TRITON_CACHE_DIR"]))
print(json.dumps([len(variants), len(failures), count, after]))
"""


def test_what_a_child_compiles_is_found_in_the_cache(tmp_path: Path) -> None:
    variants, failures, count, after = json.loads(run(IN_CACHE, tmp_path))
    assert (variants, failures) == (3, 0)
    assert count >= 3
    assert after == count


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    (tmp_path / "faulty_kernels.py").write_text(KERNELS)
    return tmp_path


def faulty(name: str) -> KernelVariant:
    return KernelVariant("faulty_kernels", name, {}, {}, 4, 3)


def test_a_compiler_that_aborts_ends_its_own_process_only(kernels: Path) -> None:
    done: list[int] = []
    failures = compile_variants(
        [faulty("working"), faulty("aborting"), faulty("wrong"), faulty("working")],
        90,
        lambda: done.append(1),
        num_children=1,
        path=[str(kernels)],
    )
    assert len(done) == 4
    assert [failure.kernel for failure in failures] == ["aborting", "wrong"]
    assert "SIGABRT" in failures[0].reason
    assert "Assertion `layout' failed." in failures[0].reason


def test_a_compiler_that_hangs_is_ended(kernels: Path) -> None:
    variants = [faulty("hanging"), faulty("working")]
    (failure,) = compile_variants(variants, 90, lambda: None, 1, [str(kernels)], limit_s=8.0)
    assert (failure.kernel, "time limit" in failure.reason) == ("hanging", True)
