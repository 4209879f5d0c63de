"""Run inside a network namespace of its own: a `mull up` is asked, and every connection counted.

    unshare -n python tests/netless.py HOME

Prints one JSON object: what listened, and what the kernel counted in this namespace.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from browser import MullUp

_SIOCSIFFLAGS, _UP = 0x8914, 0x1


def main() -> None:
    loopback_up()
    server = MullUp(Path(sys.argv[1]), model="plain").start()
    try:
        before = counted()
        asked = [
            server.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            server.ask("/api/models"),
            server.ask("/api/conversations", {"title": "x"}),
            server.ask("/api/status"),
        ]
        time.sleep(0.5)
        after = counted()
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        family = [process, *process.children(recursive=True)]
        sockets = [c for one in family for c in one.net_connections(kind="all")]
    finally:
        server.end()
    control_before = counted()["no_route"]
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as outgoing:
            outgoing.settimeout(1)
            outgoing.connect_ex(("192.0.2.1", 9))
    control = counted()["no_route"] - control_before
    print(
        json.dumps(
            {
                "answer": asked[0]["choices"][0]["message"]["content"],
                "port": server.port,
                "listening": [
                    list(c.laddr) for c in sockets if c.status == psutil.CONN_LISTEN and c.laddr
                ],
                "connected": [list(c.raddr) for c in sockets if c.raddr],
                "asked": len(asked),
                "counted": {name: after[name] - before[name] for name in after},
                "since_start": after,
                "control": control,
            }
        )
    )


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        wish = struct.pack("16sH14x", b"lo", _UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, wish)


def counted() -> dict[str, int]:
    """opened: TCP connections begun by anybody here. no_route: attempts to reach beyond it."""
    tables = _table("/proc/net/snmp")
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return {
        "opened": tables["Tcp"]["ActiveOpens"],
        "datagrams": tables["Udp"]["OutDatagrams"] + int(six.get("Udp6OutDatagrams", 0)),
        "no_route": tables["Ip"]["OutNoRoutes"] + int(six.get("Ip6OutNoRoutes", 0)),
    }


def _table(path: str) -> dict[str, Any]:
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {
        names[0].rstrip(":"): dict(zip(names[1:], map(int, values[1:]), strict=True))
        for names, values in zip(lines[::2], lines[1::2], strict=True)
    }


if __name__ == "__main__":
    main()
