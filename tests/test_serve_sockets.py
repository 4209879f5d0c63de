"""What of the network a running `mull up` touches: one loopback port, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_models import write_scripted_model
from wire_server import ANSWER

_SCRIPT = Path(__file__).with_name("netless.py")


def unshare() -> list[str]:
    """The command that gives a program a network namespace; skips where it may not."""
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("no unshare on this machine: the network is looked at on Linux only")
    command = [program, "-n"] if os.geteuid() == 0 else [program, "-r", "-n"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"network namespaces are not permitted here: {tried.stderr.strip()}")
    return command


def test_a_server_listens_on_one_loopback_port_and_reaches_for_nothing(tmp_path: Path) -> None:
    write_scripted_model(tmp_path / "models" / "plain", thinking=None, answer=ANSWER)
    done = subprocess.run(
        [*unshare(), sys.executable, str(_SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answer"] == ANSWER
    assert told["listening"] == [["127.0.0.1", told["port"]]]
    assert all(address == "127.0.0.1" for address, _ in told["connected"])
    # Every connection that was opened is one of the test's own questions.
    assert told["counted"] == {"opened": told["asked"], "datagrams": 0, "no_route": 0}
    assert told["since_start"]["no_route"] == told["since_start"]["datagrams"] == 0
    assert told["control"] == 2  # an attempt would have been counted
