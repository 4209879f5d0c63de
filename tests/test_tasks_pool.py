"""The verifier pool: order, hanging and crashing verifiers, and nothing left behind."""

import gc
import os
import signal
import threading
from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest

from mull.errors import TaskError
from mull.tasks import Problem, TaskSpec, Verdict, VerifierPool, load_task

HOSTILE = """
import ctypes, os, sys, time

def make_problem(rng):
    return f"q{rng.random()}", "right"

def verify(problem, text):
    if text == "hang":
        while True:
            pass
    if text == "hang with a child":
        os.system("sleep 300")
    if text == "crash":
        ctypes.string_at(0)
    if text == "exit":
        os._exit(0)
    if text == "leave":
        sys.exit(3)
    if text == "raise":
        raise RuntimeError("no")
    if text == "memory":
        return len(bytearray(1 << 42)) > 0
    if text == "print":
        print("c" * 10_000, flush=True)
        sys.stdin.read()
        return False
    return text == problem.answer
"""
PROBLEM = Problem("q", "right", "hostile")


@pytest.fixture
def hostile(tmp_path) -> TaskSpec:
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    return TaskSpec(str(path))


def answered(count: int) -> tuple[list, list[Verdict]]:
    """Items of three tasks with right, wrong and no answers by turns, and their verdicts."""
    specs = [TaskSpec("chain", {"levels": [0, 3]}), "multiplication", TaskSpec("countdown")]
    sources = [load_task(*([spec] if isinstance(spec, str) else [spec.name])) for spec in specs]
    streams = cycle(
        zip(specs, [list(islice(task.problems("train", 2), 50)) for task in sources], strict=True)
    )
    items, verdicts = [], []
    for index, (spec, problems) in zip(range(count), streams, strict=False):
        problem = problems[index % 50]
        text, verdict = (
            (problem.answer, Verdict.CORRECT),
            ("-1", Verdict.WRONG),
            (" ", Verdict.UNPARSABLE),
        )[index % 5 % 3]
        items.append((spec, problem, text))
        verdicts.append(verdict)
    return items, verdicts


@pytest.mark.parametrize("workers", [1, 3])
def test_verdicts_come_in_the_order_of_the_items(workers):
    items, expected = answered(1_000)
    with VerifierPool(workers) as pool:
        assert pool.verify_all(items) == expected
        assert pool.verify_all(items[:7]) == expected[:7]
        assert pool.verify_all([]) == []


def test_a_hanging_verifier_costs_its_own_answer_only(hostile):
    texts = ["right", "hang", "wrong", "right", "hang with a child", "right"]
    with VerifierPool(2, timeout_s=3) as pool:
        verdicts = pool.verify_all([(hostile, PROBLEM, text) for text in texts])
        again = pool.verify_all([(hostile, PROBLEM, "right")] * 3)
    failed, right, wrong = Verdict.VERIFIER_FAILED, Verdict.CORRECT, Verdict.WRONG
    assert verdicts == [right, failed, wrong, right, failed, right]
    assert again == [right] * 3


@pytest.mark.parametrize("how", ["crash", "exit", "leave", "raise", "memory"])
def test_a_crashing_verifier_costs_its_own_answer_only(hostile, how):
    texts = ["right", how, "wrong", how, how, "right"]
    with VerifierPool(1, timeout_s=20) as pool:
        verdicts = pool.verify_all([(hostile, PROBLEM, text) for text in texts])
    failed, right, wrong = Verdict.VERIFIER_FAILED, Verdict.CORRECT, Verdict.WRONG
    assert verdicts == [right, failed, wrong, failed, failed, right]


def test_what_a_verifier_prints_is_not_taken_for_verdicts(hostile):
    with VerifierPool(timeout_s=20) as pool:
        verdicts = pool.verify_all([(hostile, PROBLEM, text) for text in ("print", "right")])
    assert verdicts == [Verdict.WRONG, Verdict.CORRECT]


def test_a_task_that_does_not_load_fails_apart_from_the_others(tmp_path):
    items, expected = answered(4)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name")
    items.insert(2, (TaskSpec(str(broken)), PROBLEM, "right"))
    with VerifierPool() as pool:
        verdicts = pool.verify_all(items)
    assert verdicts == [*expected[:2], Verdict.VERIFIER_FAILED, *expected[2:]]


def test_a_worker_killed_from_outside_is_replaced():
    items, expected = answered(50)
    others = set(psutil.Process().children())  # servers that other tests share
    with VerifierPool(2) as pool:
        pool.verify_all(items)
        for worker in set(psutil.Process().children()) - others:
            worker.kill()
        assert pool.verify_all(items) == expected


def test_ten_thousand_verdicts_leave_nothing_behind():
    items, expected = answered(2_000)
    process = psutil.Process()
    before = {child.pid for child in process.children(recursive=True)}
    with VerifierPool(2) as pool:
        pool.verify_all(items)
        workers = [child for child in process.children() if child.pid not in before]
        gc.collect()
        files, memory = process.num_fds(), process.memory_info().rss
        memory_of_workers = sum(child.memory_info().rss for child in workers)
        for _ in range(5):
            assert pool.verify_all(items) == expected
        gc.collect()
        assert [child for child in process.children() if child.pid not in before] == workers
        assert process.num_fds() == files
        assert process.memory_info().rss - memory < 20 << 20
        assert sum(child.memory_info().rss for child in workers) - memory_of_workers < 20 << 20
    assert {child.pid for child in process.children(recursive=True)} <= before


def test_replaced_workers_leave_nothing_behind(hostile):
    process = psutil.Process()
    files, before = process.num_fds(), {child.pid for child in process.children()}
    with VerifierPool(2, timeout_s=20) as pool:
        pool.verify_all([(hostile, PROBLEM, text) for text in ["exit", "right"] * 6])
    assert process.num_fds() == files
    assert {child.pid for child in process.children()} <= before


def test_workers_import_no_torch_and_end_with_their_pool(hostile):
    others = set(psutil.Process().children())
    with VerifierPool() as pool:
        pool.verify_all([(hostile, PROBLEM, "right")])
        (worker,) = set(psutil.Process().children()) - others
        maps = Path(f"/proc/{worker.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
    assert not worker.is_running()


def test_threads_take_turns():
    items, expected = answered(300)
    found: dict[int, list[Verdict]] = {}
    with VerifierPool(2) as pool:
        threads = [
            threading.Thread(
                target=lambda index=index: found.update({index: pool.verify_all(items)})
            )
            for index in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(found.values()) == [expected] * 3


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt; a shell starts what runs behind it with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_call_leaves_the_pool_usable(hostile):
    items, expected = answered(20)
    with VerifierPool(1, timeout_s=60) as pool:
        timer = threading.Timer(1.5, os.kill, (os.getpid(), 2))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.verify_all([(hostile, PROBLEM, "hang")])
        timer.join()
        assert pool.verify_all(items) == expected


def test_a_pool_without_workers_or_time_is_refused():
    for settings in ({"workers": 0}, {"timeout_s": 0}, {"timeout_s": float("nan")}):
        with pytest.raises(TaskError):
            VerifierPool(**settings)
