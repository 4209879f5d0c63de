"""The options that all benchmark scripts share, and starting what they name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, Setting, start_all

from mull import weights

ROOT = Path(__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser, *, contenders: str, rounds: int = 5) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="smollm2-135m", help="name, GGUF file or folder")
    parser.add_argument(
        "--contenders", type=_words, default=_words(contenders), help=f"default: {contenders}"
    )
    parser.add_argument(
        "--precision", help="of ours, in place of those in --contenders, such as bf16,q8,q4"
    )
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=ROOT / ".venv-peers/bin/python",
        help="the Python the peers are installed in (`make bench-peers` makes one)",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="files for peers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    parser.add_argument("--json", action="store_true")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def chosen(args: argparse.Namespace, **options: Any) -> Setting:
    """options: of mull.load, for our contenders."""
    if args.precision:
        ours = [f"mull:{precision}" for precision in _words(args.precision)]
        peers = [word for word in args.contenders if not word.startswith("mull:")]
        args.contenders = [*ours, *peers]
    torch.set_num_threads(args.threads)
    files = (
        weights.pull(args.model) if not Path(args.model).exists() else weights.resolve(args.model)
    )
    return Setting(
        source=Path(files.path),
        work=args.work,
        peers_python=args.peers_python,
        threads=args.threads,
        options=options,
    )


@contextmanager
def ready(words: list[str], setting: Setting) -> Iterator[tuple[list[Contender], dict[str, str]]]:
    """Everybody loaded; all processes end with the block."""
    running, absent = start_all(words, setting)
    try:
        if not running:
            sys.exit("none of the contenders runs here")
        yield running, absent
    finally:
        for contender in running:
            contender.close()
