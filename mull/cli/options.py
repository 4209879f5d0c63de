"""The flags that verbs share, and loading a model as they say, with a progress bar on stderr."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli.progress import progress_bar
from mull.cli.terminal import note

if TYPE_CHECKING:
    from mull.llm import LLM

DEFAULT_MODEL = "smollm2-135m"

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Name, folder in Hugging Face layout, or .gguf file.",
        show_default=True,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="Name, folder in Hugging Face layout, or .gguf file."
    ),
]
# Where --url may name a server, which has a default model of its own.
AnyModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help=f"Name, folder in Hugging Face layout, or .gguf file (default: {DEFAULT_MODEL}, "
        "with --url the server's own).",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(metavar="P", help="auto, fp32, bf16, q8 or q4: how the weights lie in memory."),
]
DeviceOption = Annotated[str, typer.Option(metavar="D", help="auto, cpu or cuda.")]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads (default: one per core).")
]
ContextOption = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of context to make room for.")
]
CacheOption = Annotated[
    str,
    typer.Option(metavar="C", help="auto, fp32, bf16 or int8: how keys and values are kept."),
]
SpeculationOption = Annotated[
    str,
    typer.Option(
        metavar="MODE", help="auto, ngram, mtp or off: guess tokens ahead where that is faster."
    ),
]
NoThinkOption = Annotated[bool, typer.Option("--no-think", help="Answer without thinking.")]
ThinkBudgetOption = Annotated[
    int | None, typer.Option(metavar="N", help="At most N tokens of thinking per answer.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option(metavar="N", help="At most N tokens per answer, thinking included.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(metavar="T", help="0 always takes the likeliest token.")
]
TopPOption = Annotated[
    float | None, typer.Option(metavar="P", help="Sample from the likeliest share P.")
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="S", help="The same seed gives the same answer.")
]
SystemOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="An instruction before the conversation.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model: the flags that are the same for every verb that runs one."""

    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    context: int | None = None
    cache: str = "auto"
    speculation: str = "auto"


def load(model: str, options: LoadOptions) -> LLM:
    """Load a model; the default one is pulled first when it is not in the store yet."""
    with no_garbage_collection():
        from mull.llm import load as load_llm
        from mull.loading import check_options

    check_options(
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        cache=options.cache,
    )
    if model == DEFAULT_MODEL:
        pull_if_absent(model)
    with no_garbage_collection(), progress_bar(f"Loading {model}") as progress:
        return load_llm(
            model,
            precision=options.precision,
            device=options.device,
            threads=options.threads,
            context=options.context,
            cache=options.cache,
            speculation=options.speculation,
            progress=progress,
        )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For imports and loading, which make a million objects that stay: a quarter of a second less.

    What is there at the end is not looked at again, so later collections are short.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_garbage() -> None:
    """Free what `no_garbage_collection` set aside and nobody holds any more."""
    gc.unfreeze()
    gc.collect()


def check_sampling(*, think_budget: int | None, **sampling: Any) -> None:
    """Refuse bad sampling values before the model is pulled or loaded. Raises RequestError."""
    with no_garbage_collection():
        from mull.engine.request import Request, SamplingParams

    given = {name: value for name, value in sampling.items() if value is not None}
    Request([0], SamplingParams(**given), think_budget=think_budget)


def make_repeatable(sampling: dict[str, Any], *, thinks: bool | None) -> None:
    """Greedy where nothing is said of sampling: a script asks twice and wants the same answer.

    Not for a model that thinks: greedy thinking runs in circles, as its makers warn.
    """
    is_silent = all(sampling[name] is None for name in ("temperature", "top_p", "seed"))
    if is_silent and thinks is False:
        sampling["temperature"] = 0.0


def pull_if_absent(model: str) -> None:
    from mull import weights

    if all(files.name != model for files in weights.list_models()):
        with progress_bar(f"Pulling {model}", in_bytes=True) as progress:
            weights.pull(model, progress=progress, say=note)
