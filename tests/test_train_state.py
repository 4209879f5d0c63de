"""Checkpoints: bit-identical, whole after a kill at any moment, damage and full disks survived."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mull.errors import TrainError
from mull.train.state import Checkpoints, RunLock

# Starting Python with torch takes two seconds, so one process forks the savers that are killed.
KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from mull.train.state import Checkpoints

folder = Path(sys.argv[1])
random.seed(4)
torch.set_num_threads(1)

def save_for_ever():
    kept = Checkpoints(folder)
    last = kept.latest()
    step = last.position["step"] if last else 0
    while True:
        step += 1
        tensors = {"a": torch.full((300, 300), float(step)), "b": torch.tensor(step)}
        kept.save({"stage": "rl", "step": step}, tensors, {"step": step})

def newest():
    whole = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return max((int(name.rpartition("-")[2]) for name in whole), default=0)

reached = unfinished = 0
for kill in range(20):
    saver = os.fork()
    if saver == 0:
        save_for_ever()
    deadline = time.monotonic() + 60
    while newest() <= reached and time.monotonic() < deadline:  # however slow the disk
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    os.kill(saver, signal.SIGKILL)
    os.waitpid(saver, 0)
    found = Checkpoints(folder).latest()
    unfinished += any(path.name.startswith(".") for path in folder.iterdir())
    if found is None:
        assert not reached, "what was there is gone"
        continue
    step = found.position["step"]
    assert step >= reached and found.facts == {"step": step}, (step, reached)
    assert torch.equal(found.tensors["a"], torch.full((300, 300), float(step)))
    reached = step
print(reached, unfinished)
"""
FILLER = """
import resource, sys, torch
from pathlib import Path
from mull.errors import TrainError
from mull.train.state import Checkpoints
kept = Checkpoints(Path(sys.argv[1]))
kept.save({"stage": "rl", "step": 1}, {"a": torch.ones(10)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    kept.save({"stage": "rl", "step": 2}, {"a": torch.ones(100_000)}, {})
except TrainError as error:
    print(error)
"""


def at(step: int, stage: str = "rl") -> dict[str, object]:
    return {"stage": stage, "step": step}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_dtype_comes_back_bit_identical(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (64, 8), dtype=torch.uint8)  # NaNs and infinities among them
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn,
              torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]  # fmt: skip
    tensors = {str(dtype): raw.view(dtype) for dtype in dtypes}
    tensors["bool"] = raw > 100
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 4)
    tensors["turned"] = torch.randn(5, 7).T
    tensors["tied"] = tensors["also tied"] = torch.randn(3)
    facts = {"rng": [1, 2**63], "rate": 0.1 + 0.2, "text": "\ud800 é", "none": None}
    Checkpoints(tmp_path).save({**at(7), "data": [3, 4]}, tensors, facts)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found.position == {"stage": "rl", "step": 7, "data": [3, 4]}
    assert found.facts == facts
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        assert bits(found.tensors[name]) == bits(tensor), name


def test_loaded_tensors_survive_the_removal_of_their_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.save(at(1), {"a": torch.arange(1000)}, {})
    found = kept.latest()
    kept.save(at(2), {"a": torch.zeros(1000)}, {})
    assert found is not None
    assert not found.path.exists()
    assert torch.equal(found.tensors["a"], torch.arange(1000))


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() is None


def test_the_last_ones_and_the_best_of_the_stage_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=2)
    kept.save(at(9, "sft"), {}, {}, {"pass_at_1": 0.99})
    for step, score in enumerate([0.1, 0.8, 0.3, 0.8, 0.2, 0.4], start=1):
        kept.save(at(step), {"a": torch.tensor(step)}, {}, {"pass_at_1": score})
    assert sorted(path.name.split("-", 1)[1] for path in tmp_path.iterdir()) == [
        "rl-2", "rl-5", "rl-6",
    ]  # fmt: skip
    latest = Checkpoints(tmp_path).latest()
    assert latest is not None
    assert latest.position["step"] == 6


def test_the_best_one_is_the_earliest_whole_one_of_the_highest_score(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=9)
    kept.save(at(9, "sft"), {}, {}, {"validation": 7.0})
    paths = [
        kept.save(at(step), {"a": torch.tensor(step)}, {}, {} if score is None else {"v": score})
        for step, score in enumerate([float("nan"), -2.0, -1.0, None, -1.0, -3.0], start=1)
    ]

    def best() -> int | None:
        found = Checkpoints(tmp_path).best("rl", "v")
        return None if found is None else int(found.tensors["a"])

    assert best() == 3
    for path, next_best in ((paths[2], 5), (paths[4], 2)):
        (path / "tensors.safetensors").write_bytes(b"")
        assert best() == next_best
    assert Checkpoints(tmp_path).best("sft", "v") is None
    assert Checkpoints(tmp_path / "none").best("rl", "v") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "checkpoint.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_newest_one_falls_back_with_a_warning(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(at(1), {"a": torch.ones(100)}, {"x": 1})
    file = kept.save(at(2), {"a": torch.ones(100)}, {"x": 2}) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    fresh = Checkpoints(tmp_path)
    found = fresh.latest()
    assert found is not None
    assert found.position["step"] == 1
    assert "damaged" in caplog.text
    # The damaged one takes no whole one's place, and goes.
    fresh.save(at(2), {"a": torch.ones(100)}, {"x": 2})
    assert len(list(tmp_path.iterdir())) == 2
    (last,) = [path for path in tmp_path.iterdir() if path.name.endswith("rl-1")]
    assert last == found.path


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(at(1), {}, {})
    (path / "facts.json").write_text("{}")
    with pytest.raises(TrainError, match="every checkpoint is damaged"):
        Checkpoints(tmp_path).latest()


def test_a_kill_at_any_moment_leaves_the_last_whole_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reached, unfinished = map(int, done.stdout.split())
    assert reached >= 1
    assert unfinished >= 1  # kills did fall into saves
    Checkpoints(tmp_path).save(at(reached + 1), {}, {})
    assert len(list(tmp_path.iterdir())) == 2  # what they left is gone


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "stage rl, step 2 could not be written" in done.stdout
    assert "free some space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found.position["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        with pytest.raises(TrainError, match="another process is training here"):
            RunLock(tmp_path / "run").__enter__()
        code = (
            "import sys; from pathlib import Path; from mull.train.state import RunLock\n"
            "RunLock(Path(sys.argv[1])).__enter__()"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True
        )
        assert "TrainError" in other.stderr
    with RunLock(tmp_path / "run"):
        pass


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(at(1), {"a": torch.ones(1)}, {})
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".json", ".safetensors"]
    contents = json.loads((path / "checkpoint.json").read_text())
    assert contents["files"]["facts.json"]["size"] == (path / "facts.json").stat().st_size
