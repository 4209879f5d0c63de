"""Pulling from a hub, against a real server on this machine that speaks its protocol."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, serving

from mull import weights
from mull.errors import WeightsError
from mull.weights.catalog import HubSource
from mull.weights.hub_plan import _choose
from mull.weights.order import Order
from mull.weights.pulling import pull_order

REPOSITORY = "some-org/Some-Model"
# huggingface_hub hands data on in pieces of 10 MiB: a file must be larger for a resume to show
LARGE = random.Random(7).randbytes(24 << 20)
SMALL_FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "merges.txt": b"a b",
    "model.safetensors": b"not really tensors",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(REPOSITORY, SMALL_FILES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def pull_in_another_process(name: str, prelude: str = "") -> subprocess.Popen[str]:
    program = (
        f"{prelude}\nimport sys\nfrom mull import weights\nfrom mull.errors import WeightsError\n"
        f"try:\n    weights.pull({name!r}, say=print)\n"
        "except WeightsError as error:\n    sys.exit(f'refused: {error}')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def refusal(name: str = REPOSITORY) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.pull(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pull_takes_only_what_mull_reads_and_records_all_of_it(hub: HubServer) -> None:
    hub.commits[COMMIT] |= {
        "pytorch_model.bin": b"pickle",
        "modeling_some.py": b"import os",
        "model.pt": b"pickle",
        "README.md": b"# model",
        "original/model.safetensors": b"again",
        "manifest.json": b"{}",
    }
    files = weights.pull(REPOSITORY)
    assert (files.kind, files.name) == ("hf", REPOSITORY)
    assert {path.name for path in files.path.iterdir()} == {*SMALL_FILES, "manifest.json"}
    assert {path for _method, path, _range in hub.requests} == set(SMALL_FILES)
    manifest = json.loads((files.path / "manifest.json").read_text())
    assert (manifest["revision"], manifest["licence"]) == (COMMIT, "mit")
    assert {item["path"]: (item["size"], item["sha256"]) for item in manifest["files"]} == {
        path: (len(content), hashlib.sha256(content).hexdigest())
        for path, content in SMALL_FILES.items()
    }
    assert weights.resolve(REPOSITORY) == files
    assert weights.verify(REPOSITORY) == []
    assert not list((files.path.parent / ".partial").glob("*.plan.json"))


def test_a_model_that_cannot_run_here_is_warned_of_before_its_weights_come(hub: HubServer) -> None:
    said: list[tuple[str, int]] = []
    shape = weights.load_catalog()["deepseek-r1"].config
    hub.commits[COMMIT] |= {
        "config.json": json.dumps(shape).encode(),
        "model.safetensors": bytes(10_000),
    }
    weights.pull(REPOSITORY, say=lambda line: said.append((line, len(hub.requests))))
    (warning,) = [each for each in said if each[0].startswith("warning")]
    # At the precision that takes least here: q4, or float32 where no native code unpacks it.
    assert re.search(rf"{REPOSITORY} needs [\d.]+ [TG]B of memory in (q4|bf16)", warning[0])
    assert "does not fit" in warning[0]
    assert warning[1] < len(hub.requests)
    hub.commits["e" * 40] = {**SMALL_FILES, "config.json": b'{"model_type": "gpt9"}'}
    weights.pull(f"{REPOSITORY}@{'e' * 40}", say=lambda line: said.append((line, 0)))
    assert any("gpt9" in line for line, _requests in said)


def test_a_cut_connection_is_resumed_where_it_stopped(hub: HubServer) -> None:
    hub.commits[COMMIT]["model.safetensors"] = LARGE
    hub.cut_after["model.safetensors"] = 22 << 20
    said: list[str] = []
    seen: list[tuple[int, int]] = []
    files = weights.pull(
        REPOSITORY, progress=lambda done, total: seen.append((done, total)), say=said.append
    )
    assert (files.path / "model.safetensors").read_bytes() == LARGE
    assert hub.gets("model.safetensors") == [None, f"bytes={20 << 20}-"]
    assert hub.sent["model.safetensors"] < 1.2 * len(LARGE)
    assert any("connection lost in model.safetensors" in line for line in said)
    total = sum(map(len, SMALL_FILES.values())) - len(SMALL_FILES["model.safetensors"]) + len(LARGE)
    assert seen[-1] == (total, total)


def test_a_killed_pull_goes_on_in_the_next_process(hub: HubServer, home: Path) -> None:
    hub.commits[COMMIT]["model.safetensors"] = LARGE
    hub.stall_after["model.safetensors"] = 22 << 20
    process = pull_in_another_process(REPOSITORY)
    assert hub.stalled.wait(timeout=60)
    process.kill()
    process.wait()
    hub.stall_after.clear()
    hub.go_on.set()
    assert weights.pulled_models() == []
    hub.branch = "d" * 40  # the repository moves on meanwhile
    hub.commits[hub.branch] = {**SMALL_FILES, "config.json": b"{}"}
    files = weights.pull(REPOSITORY)
    assert (files.path / "model.safetensors").read_bytes() == LARGE
    assert hub.gets("model.safetensors") in (
        [None, f"bytes={20 << 20}-"],
        [None, f"bytes={10 << 20}-"],  # killed before it had written the second piece
    )
    assert hub.sent["model.safetensors"] < 2 * len(LARGE)
    assert files.manifest is not None
    assert files.manifest["revision"] == COMMIT  # held to from the first listing on
    assert hub.listings == 1


def test_a_present_model_is_answered_without_the_hub_even_when_the_branch_moved(
    hub: HubServer,
) -> None:
    first = weights.pull(REPOSITORY)
    hub.branch = "d" * 40
    hub.commits[hub.branch] = {**SMALL_FILES, "config.json": b"{}"}
    asked = (len(hub.requests), hub.listings)
    assert weights.pull(REPOSITORY) == first
    assert (len(hub.requests), hub.listings) == asked
    newer = weights.pull(f"{REPOSITORY}@{hub.branch}")
    assert newer.path != first.path
    assert (newer.path / "config.json").read_bytes() == b"{}"


def test_a_file_that_differs_from_its_listed_hash_is_refused(hub: HubServer, home: Path) -> None:
    for path in ("model.safetensors", "config.json"):  # one hashed by LFS, one by git
        hub.listed[COMMIT] = dict(SMALL_FILES)
        original = SMALL_FILES[path]
        hub.commits[COMMIT][path] = original[:-1] + b"!"
        message = refusal()
        assert path in message
        assert "refused" in message
        assert weights.pulled_models() == []
        hub.commits[COMMIT][path] = original
    assert weights.pull(REPOSITORY).kind == "hf"


def test_a_damaged_file_is_mended_from_the_recorded_revision(hub: HubServer) -> None:
    files = weights.pull(REPOSITORY)
    hub.branch = "d" * 40
    (files.path / "model.safetensors").write_bytes(b"not really tensorS")
    with pytest.raises(WeightsError, match=r"model.safetensors has a wrong hash.*mull pull"):
        weights.resolve(REPOSITORY)
    hub.requests.clear()
    assert weights.pull(REPOSITORY) == weights.resolve(REPOSITORY)
    assert {path for _method, path, _range in hub.requests} == {"model.safetensors"}
    assert weights.verify(REPOSITORY) == []


def test_a_changed_file_at_the_same_revision_is_refused(hub: HubServer) -> None:
    files = weights.pull(REPOSITORY)
    (files.path / "model.safetensors").unlink()
    hub.commits[COMMIT]["model.safetensors"] = b"other real tensors"  # also a new LFS hash
    assert "model.safetensors" in refusal()
    assert not (files.path / "model.safetensors").exists()


def test_a_server_that_sends_more_than_it_listed_is_stopped(hub: HubServer, home: Path) -> None:
    hub.listed[COMMIT] = dict(SMALL_FILES)
    hub.commits[COMMIT]["model.safetensors"] = LARGE
    message = refusal()
    assert "model.safetensors" in message
    assert "longer" in message
    assert sum(file.stat().st_size for file in home.rglob("*.part")) < 1000


@pytest.mark.parametrize(
    "path", ["../../evil.json", "/tmp/evil.json", "a\\..\\evil.json", "C:evil.json", "a/../b.json"]
)
def test_names_that_leave_the_folder_are_refused(hub: HubServer, home: Path, path: str) -> None:
    hub.commits[COMMIT][path] = b"{}"
    assert "unsafe file name" in refusal()
    assert not list(home.parent.rglob("evil.json"))
    assert hub.requests == []


def test_two_pulls_at_once_fetch_once(hub: HubServer) -> None:
    hub.commits[COMMIT]["model.safetensors"] = LARGE
    hub.stall_after["model.safetensors"] = 1 << 20
    first = pull_in_another_process(REPOSITORY)
    assert hub.stalled.wait(timeout=60)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        hub.go_on.set()

    files = weights.pull(REPOSITORY, say=say)
    assert first.wait(timeout=60) == 0
    assert said == [f"another pull of {REPOSITORY} is running: waiting for it"]
    assert hub.gets("model.safetensors") == [None]
    assert weights.verify(files) == []


def test_an_interrupted_pull_leaves_no_model_and_goes_on_later(hub: HubServer, home: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.pull(REPOSITORY, progress=interrupt)
    assert weights.pulled_models() == []
    assert weights.pull(REPOSITORY).kind == "hf"


def test_a_repository_with_many_ggufs_asks_which(hub: HubServer) -> None:
    hub.commits[COMMIT] = {
        "README.md": b"",
        "Some-Model-Q4_K_M.gguf": b"four",
        "Some-Model-Q8_0.gguf": b"eight",
        "BF16/Some-Model-BF16-00001-of-00002.gguf": b"first",
        "BF16/Some-Model-BF16-00002-of-00002.gguf": b"second",
    }
    message = refusal()
    assert "Some-Model-Q4_K_M.gguf" in message
    assert "BF16/Some-Model-BF16.gguf" in message
    four = weights.pull(f"{REPOSITORY}:q4_k_m")
    assert (four.kind, four.path.read_bytes()) == ("gguf", b"four")
    split = weights.pull(f"{REPOSITORY}:BF16")
    assert split.path.name == "Some-Model-BF16-00001-of-00002.gguf"
    assert len(list(split.path.parent.iterdir())) == 2
    assert weights.verify(split) == []
    assert "Some-Model-Q8_0.gguf" in refusal(f"{REPOSITORY}:Q2_K")


@pytest.mark.parametrize(
    ("select", "fetched"),
    [
        ("Q6_K", ["M-Q6_K.gguf"]),
        ("q6_k_l", ["M-Q6_K_L.gguf"]),
        ("Q8_0", ["Q8_0/M-Q8_0-00001-of-00002.gguf", "Q8_0/M-Q8_0-00002-of-00002.gguf"]),
        ("Q8_0/M-Q8_0-00001-of-00002.gguf", 2 * ["Q8_0/M-Q8_0-0000"]),
        ("M-IQ4", ["M-IQ4.gguf"]),  # its name, though another ends so
        ("old/M-IQ4", ["old/M-IQ4.gguf"]),
        ("imatrix", ["M-imatrix-IQ2.gguf"]),
        ("IQ4", None),
        ("Q6", None),
    ],
)
def test_the_gguf_that_is_fetched_is_the_one_whose_name_ends_as_asked(
    select: str, fetched: list[str] | None
) -> None:
    parts = [f"Q8_0/M-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    whole = "M-Q6_K.gguf M-Q6_K_L.gguf M-IQ4.gguf X-M-IQ4.gguf old/M-IQ4.gguf M-imatrix-IQ2.gguf"
    source = HubSource(REPOSITORY, None, select)
    if fetched is None:
        with pytest.raises(WeightsError, match="several GGUF models"):
            _choose([*whole.split(), *parts], source)
    else:
        chosen = _choose([*whole.split(), *parts], source)
        assert len(chosen) == len(fetched)
        assert all(path.startswith(start) for path, start in zip(chosen, fetched, strict=True))


def test_a_repository_of_pickles_is_refused(hub: HubServer) -> None:
    hub.commits[COMMIT] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    assert "no .safetensors and no .gguf" in refusal()


def test_what_the_hub_does_not_have_is_said_in_one_line(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no repository some-org/Other" in refusal("some-org/Other")
    assert "no revision 'v9'" in refusal(f"{REPOSITORY}@v9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot fetch" in refusal()


def test_a_password_in_the_address_of_the_hub_is_never_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("://", "://user:s3cret@"))
    told = [refusal("some-org/Other"), refusal(f"{REPOSITORY}@v9")]
    monkeypatch.setenv("HF_ENDPOINT", "http://user:s3cret@127.0.0.1:9")
    for line in [*told, refusal()]:
        assert "http://127.0.0.1" in line
        assert "s3cret" not in line


def test_a_disk_too_small_is_refused_before_the_first_byte(hub: HubServer) -> None:
    hub.claimed_sizes["model.safetensors"] = 15 << 40
    assert "needs 16.5 TB of disk" in refusal()
    assert hub.requests == []


def test_a_disk_that_fills_up_midway_leaves_nothing_half_written(
    hub: HubServer, home: Path
) -> None:
    hub.commits[COMMIT]["model.safetensors"] = LARGE
    # The kernel refuses to let a file grow past 15 MB, as a full disk would (EFBIG for ENOSPC)
    process = pull_in_another_process(
        REPOSITORY,
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (15 << 20, 15 << 20))",
    )
    _out, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complaint.startswith("refused: disk full while pulling")
    assert complaint.count("\n") == 1
    assert weights.pulled_models() == []
    files = weights.pull(REPOSITORY)  # with room again it goes on where it stopped
    assert (files.path / "model.safetensors").read_bytes() == LARGE
    assert hub.gets("model.safetensors")[1] is not None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk_is_told_in_one_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        monkeypatch.setenv("MULL_HOME", str(disk))
        hub.commits[COMMIT]["model.safetensors"] = LARGE

        def fill(path: str) -> None:
            if path == "model.safetensors":
                (disk / "other").write_bytes(bytes(20 << 20))

        hub.before_file = fill
        assert refusal().startswith("disk full while pulling")
        assert weights.pulled_models() == []
        (disk / "other").unlink()
        hub.before_file = lambda path: None
        assert weights.pull(REPOSITORY).kind == "hf"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_catalogued_model_too_large_for_the_disk_is_refused_without_asking_the_hub(
    hub: HubServer,
) -> None:
    order = Order("huge", HubSource(REPOSITORY), download_bytes=10**16)
    with pytest.raises(WeightsError, match=r"huge needs .* of disk"):
        pull_order(order)
    assert (hub.listings, hub.requests) == (0, [])
