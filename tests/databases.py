"""Both kinds of database the store runs on. PostgreSQL is started for the tests, in a new cluster
of its own, as a user who is not root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

KINDS = ("sqlite", "postgresql")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database; skips the test where there is no PostgreSQL."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'chats.db'}"
        return
    with cluster() as url:
        yield url


@contextmanager
def cluster() -> Iterator[str]:
    programs = _programs()
    user = _user()
    # pytest's own folders are closed to other users
    home = Path(tempfile.mkdtemp(prefix="mull-postgres-"))
    try:
        if user is not None:
            shutil.chown(home, user)
        data, port = home / "data", free_port()
        made = [programs / "initdb", "-D", data, "-U", "mull", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*made, "--locale=C.UTF-8", "-N"], check=True, capture_output=True, user=user
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": home,
            "fsync": "off",
            "max_connections": 40,
        }
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *flags], stdout=log, stderr=log, user=user
            )
        try:
            _wait_for(server, port, home / "log")
            yield f"postgresql://mull@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _programs() -> Path:
    found = [Path(path).parent for name in ("initdb",) if (path := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"postgresql://mull@127.0.0.1:{port}/postgres").close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
