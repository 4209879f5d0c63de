"""dasLLAMA as a contender (see child.py), timed by the bench program that its package carries.

That program loads the model (from the image it keeps beside the file) for every request; loading
and a warm-up run lie outside the time it reports.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from typing import Any

from child import UnsupportedError, decoded, serve
from dasllama import tool_path

_RATE = re.compile(r"^((?:pp|tg)\S+): ([\d.]+) ± [\d.]+ tok/s", re.MULTILINE)


def load(model: str, quant: str, threads: int) -> Any:
    program = tool_path("dasllama-bench")
    command = [program, "--model", model, "-q", quant, "-t", str(threads), "-r", "1"]

    def rates(**flags: int) -> dict[str, float]:
        extra = [part for name, value in flags.items() for part in (_flag(name), str(value))]
        run = subprocess.run(
            [*command, *extra], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        found = {name: float(rate) for name, rate in _RATE.findall(run.stdout + run.stderr)}
        if not found:
            raise UnsupportedError((run.stderr or run.stdout).strip().splitlines()[-1])
        return found

    def prefill(tokens: int, seed: int) -> dict[str, Any]:
        return {"seconds": tokens / rates(p=tokens, n=0)[f"pp{tokens}"], "tokens": tokens}

    def decode(batch: int, steps: int, context_tokens: int, seed: int) -> dict[str, Any]:
        """Alone its plain row counts, which starts from an empty context."""
        if batch == 1 and context_tokens > 16:
            raise UnsupportedError("its bench times one sequence from an empty context only")
        if batch == 1:
            rate = rates(p=0, n=steps)[f"tg{steps}"]
        else:
            found = rates(p=0, n=steps, npl=batch, npl_plen=context_tokens)
            rate = found[f"tg{steps}@{batch}"]
        return {"seconds": batch * steps / rate, "tokens": batch * steps}

    rates(p=16, n=0)  # writes the image, and shows that the model is one it knows
    greeting = {"program": "dasLLAMA", "version": version("dasllama"), "quant": quant}
    return greeting, {"prefill": prefill, "decode": decode, "rollout": decoded(decode)}


def _flag(name: str) -> str:
    return f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")


if __name__ == "__main__":
    serve(load)
