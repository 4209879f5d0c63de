"""`mull bench`: prefill and decode speed by batch size, beside what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli.options import (
    DEFAULT_MODEL,
    CacheOption,
    DeviceOption,
    JsonOption,
    LoadOptions,
    ModelArgument,
    PrecisionOption,
    ThreadsOption,
    load,
)
from mull.cli.terminal import note, print_json, print_table

if TYPE_CHECKING:
    from mull.llm import LLM

PREFILL_TOKENS = 512
BATCHES = (1, 4, 8, 16, 32)


def bench(
    model: ModelArgument = DEFAULT_MODEL,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    cache: CacheOption = "auto",
    rounds: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="Runs of each; the median counts.")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure prefill and decode speed.

    Tokens/s by batch size through the real engine (scheduler, sampler, paged cache), medians of
    several rounds, beside the peaks of this machine measured in the same minute.
    """
    llm = load(model, LoadOptions(precision, device, threads, cache=cache))
    llm.close()  # ends the thread that steps the engine: the bench steps it itself

    from mull.kernels.peaks import measure_peaks

    before = measure_peaks()
    results = list(run_bench(llm, rounds))
    peaks = before.best_of(measure_peaks())
    products, best = peaks.of_products(llm.precision)
    of_products = f"OF {products.upper()} PEAK"
    note(f"{llm.name} · {llm.precision} · this machine at its best: {peaks.in_words()}")
    if as_json:
        print_json(results)
        return
    print_table(
        ("METRIC", "BATCH", "TOKENS/S", "GB/S", "OF READ PEAK", "GOP/S", of_products),
        [
            (
                result["metric"],
                str(result["batch"]),
                f"{result['tokens_per_s']:,.1f}",
                f"{result['gb_per_s']:.1f}",
                f"{result['gb_per_s'] / peaks.read_gb_per_s:.0%}",
                f"{result['gop_per_s']:,.0f}",
                f"{result['gop_per_s'] / best:.0%}",
            )
            for result in results
        ],
    )


def run_bench(llm: LLM, rounds: int) -> Iterator[dict[str, Any]]:
    """Prefill of 512 tokens, then decode at each batch size: the objects of `--json`."""
    from mull.cli.speed import PROMPT_TOKENS, Work, check_room, decode_rate, prefill_rate
    from mull.weights.memory import weight_bytes

    check_room(llm.context, PREFILL_TOKENS + 1)
    each = weight_bytes(llm.config, llm.precision) / llm.config.parameter_count()[0]
    work = Work(llm.config, each, llm.engine.cache.bytes_per_token)

    def result(metric: str, batch: int, rate: float, step_bytes: float, step_ops: float) -> Any:
        steps_per_s = rate / batch
        return {
            "metric": metric,
            "batch": batch,
            "tokens_per_s": round(rate, 1),
            "gb_per_s": round(step_bytes * steps_per_s / 1e9, 2),
            "gop_per_s": round(step_ops * steps_per_s / 1e9, 1),
            "precision": llm.precision,
        }

    rate = prefill_rate(llm.engine, PREFILL_TOKENS, rounds=rounds, seed=1)
    read = work.step_bytes(PREFILL_TOKENS, 1)
    yield result("prefill", PREFILL_TOKENS, rate, read, work.prefill_ops(PREFILL_TOKENS))
    for batch in BATCHES:
        rate, steps = decode_rate(llm.engine, batch, rounds=rounds, seed=batch * 1000)
        read = work.step_bytes(batch, PROMPT_TOKENS + steps // 2)
        yield result("decode", batch, rate, read, work.decode_ops(batch))
