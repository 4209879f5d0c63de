"""Running a recipe: stage after stage, in a folder that can be gone on with after any kill.

Everything is a function of the recipe, the seed and the step; what is not is in the checkpoint:
weights, optimiser, router biases, waiting rollouts, reference policy, bill, and how long the logs
were. A resumed run cuts the logs back to there and goes on, to the very bits of one never stopped.
"""

from __future__ import annotations

import datetime
import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mull.errors import MullError, TrainError, TrainFailedError, WeightsError
from mull.model import CausalLM
from mull.tasks import VerifierPool
from mull.train import models as run_models
from mull.train.bill import Bill, Budget
from mull.train.check import check, check_here
from mull.train.live import LivePage, StagePlan
from mull.train.metrics import Metrics
from mull.train.models import Models
from mull.train.peak import Peak
from mull.train.problems import Tasks
from mull.train.recipe import OWN, Recipe
from mull.train.recipe_stages import Distill, Evaluate, Pretrain, Reject, Rl, Sft, Stage
from mull.train.run_folder import Discarded, RunFolder
from mull.train.session import Session, StopAsked, save_checkpoint
from mull.train.stages.distill import distill
from mull.train.stages.evaluate import evaluate
from mull.train.stages.learn import learn
from mull.train.stages.reject import reject
from mull.train.stages.rl import reinforce
from mull.train.state import Checkpoint

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Ending:
    """status: done, budget or interrupted. final: the result, where there is one."""

    status: str
    folder: Path
    final: Path | None


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    budget: str | None = None,
    keep_last: int = 2,
) -> Ending:
    """Runs the stages of a recipe in the folder `out`, or goes on with the run there.

    budget: "20m" or "$2", beside the recipe's own. A signal to stop (SIGTERM, SIGINT) or a spent
    budget ends it with its state saved. Raises RecipeError, TaskError or TrainError; the last whole
    checkpoint is then untouched.
    """
    check(recipe)
    limit = _budget(budget or recipe.budget, recipe)
    tasks = Tasks(recipe)
    check_here(recipe, tasks)
    if resume:
        folder = RunFolder.resume(out, recipe, allow_changes=allow_changes, keep_last=keep_last)
    else:
        folder = RunFolder.start(out, recipe, keep_last=keep_last)
    with folder, _exact_arithmetic(), VerifierPool() as pool:
        session, checkpoint = _session(folder, tasks, pool, limit)
        with session.page, _signals(session):
            try:
                return _run(session, checkpoint)
            except (TrainError, WeightsError) as error:
                raise _failed(session, error) from error
            except MullError as error:
                message = _placed(session, error)
                _note_failure(session, message)
                raise type(error)(message) from error
            finally:
                session.metrics.close()


def _run(session: Session, checkpoint: Checkpoint | None) -> Ending:
    try:
        for stage in session.recipe.stages:
            if stage.name in session.done:
                continue
            mine = checkpoint if _is_of(checkpoint, stage) else None
            _stage(session, stage, mine)
        final = _finish(session, session.recipe.stages[-1])
    except StopAsked as stop:
        return _stop(session, stop.reason)
    session.bill.stop()
    _conclude(session, "done")
    return Ending("done", session.folder.path, final)


def _stage(session: Session, stage: Stage, checkpoint: Checkpoint | None) -> None:
    """One stage, from its checkpoint on; afterwards its result is on disk, and it is done."""
    session.bill.start(stage.name)
    session.keeper, session.stage = None, stage.name
    trainee = _STAGES[type(stage)](session, stage, checkpoint)
    if session.keeper is not None:
        session.keeper.settle()
    if trainee is not None:
        session.models.save(
            stage.name,
            trainee.model,
            trainee.opened.tokenizer,
            opens_thinking=trainee.opens_thinking,
        )
    step = session.keeper.step if session.keeper is not None else 0
    session.keeper = session.stage = None
    session.bill.tick()
    session.metrics.stage_end(stage.name, stage.kind, step, session.bill.line(stage.name))
    session.done.append(stage.name)
    save_checkpoint(session, stage.name, step, {}, {})
    session.folder.note_bill(session.bill.to_dict())
    session.report()


_STAGES: dict[type, Any] = {
    Pretrain: learn,
    Sft: learn,
    Rl: reinforce,
    Reject: reject,
    Distill: distill,
    Evaluate: evaluate,
}


def _finish(session: Session, last: Stage) -> Path:
    """`final/`: a copy of the last stage's result."""
    name = session.models.result_of(last.name)
    if name == OWN:
        opened = session.models.open(name)
        return _put_final(session, opened.model, opened.tokenizer)
    scratch = session.folder.path / "final.new"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shutil.copytree(session.models.path(name), scratch)
    except OSError as error:
        raise TrainError(f"{scratch}: could not be written ({error}); free some space") from error
    return _renamed(scratch, session.folder.final)


def _put_final(
    session: Session, model: CausalLM, tokenizer: Path, *, opens_thinking: bool = False
) -> Path:
    scratch = session.folder.path / "final.new"
    shutil.rmtree(scratch, ignore_errors=True)
    run_models.save(model, scratch, tokenizer, opens_thinking=opens_thinking)
    return _renamed(scratch, session.folder.final)


def _renamed(scratch: Path, final: Path) -> Path:
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    return final


def _stop(session: Session, reason: str) -> Ending:
    """Saves the state; after a spent budget there is a result as well, the model as it stands."""
    final = None
    keeper = session.keeper
    session.page.note(f"stopping ({reason}): saving the state")
    if keeper is not None:
        keeper.save()
    if reason == "budget":
        if keeper is not None and (trainee := keeper.trainee) is not None:
            keeper.settle()
            final = _put_final(
                session,
                trainee.model,
                trainee.opened.tokenizer,
                opens_thinking=trainee.opens_thinking,
            )
        elif session.done:
            names = {stage.name: stage for stage in session.recipe.stages}
            final = _finish(session, names[session.done[-1]])
    session.bill.stop()
    _conclude(session, reason)
    return Ending(reason, session.folder.path, final)


def _failed(session: Session, error: MullError) -> TrainFailedError:
    """What went wrong, in which stage, and what there is to go on from."""
    names = sorted(path.name for path in (session.folder.path / "checkpoints").glob("[0-9]*"))
    kept = f"the last whole checkpoint is {names[-1]}" if names else "no checkpoint was written yet"
    message = _placed(session, error)
    if "last whole" not in message:
        message += f"; {kept}"
    _note_failure(session, message)
    return TrainFailedError(message)


def _placed(session: Session, error: MullError) -> str:
    """What it says, with the stage that it came up in."""
    stage = "" if session.stage is None else f"stage {session.stage}: "
    return stage + str(error).removeprefix(stage)


def _note_failure(session: Session, message: str) -> None:
    """Says so where it is looked for; never hides the error itself."""
    try:
        session.bill.stop()
        _conclude(session, "failed", error=message)
    except MullError as another:
        _log.warning("%s", another)


def _conclude(session: Session, status: str, **more: Any) -> None:
    session.folder.note_bill(
        session.bill.to_dict(),
        status=status,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        done=session.done,
        **more,
    )
    session.report()


def _session(
    folder: RunFolder, tasks: Tasks, pool: VerifierPool, budget: Budget | None
) -> tuple[Session, Checkpoint | None]:
    recipe = folder.recipe
    checkpoint = folder.checkpoints.latest()
    facts: Mapping[str, Any] = checkpoint.facts if checkpoint is not None else {}
    discarded = folder.rewind(facts.get("marks", {}))
    bill = _carried(folder, facts, discarded)
    _clean(folder.path)
    plans = [StagePlan(stage.name, stage.kind, _steps(stage)) for stage in recipe.stages]
    alarms = [stage.gap_alarm for stage in recipe.stages if isinstance(stage, Rl)]
    page = LivePage(recipe.name, plans, bill, budget=budget, gap_alarm=min(alarms, default=0.1))
    session = Session(
        recipe=recipe,
        folder=folder,
        tasks=tasks,
        models=Models(recipe, tasks, folder.path),
        pool=pool,
        bill=bill,
        metrics=Metrics(folder.metrics, folder.samples, folder.tensorboard),
        page=page,
        peak=Peak(),
        budget=budget,
        done=list(facts.get("done", [])),
    )
    _same_threads(session, facts.get("threads"))
    return session, checkpoint


def _carried(folder: RunFolder, facts: Mapping[str, Any], discarded: Discarded) -> Bill:
    """The checkpoint's bill; what was spent after it, by the manifest's and by the records that are
    newer than that, was for work that is now repeated."""
    machine = folder.recipe.machine
    bill = Bill.from_dict(facts["bill"], machine) if facts else Bill(machine)
    if known := folder.manifest().get("bill"):
        try:
            bill.repeat(Bill.from_dict(known))
        except (KeyError, TypeError, AttributeError, ValueError):
            _log.warning("%s: the manifest's bill is damaged: passed over", folder.path)
    for stage, seconds in discarded.seconds.items():
        bill.add(stage, repeated_seconds=seconds)
    folder.note_bill(bill.to_dict())
    return bill


def _steps(stage: Stage) -> int | None:
    if isinstance(stage, Evaluate):
        return None
    return stage.questions if isinstance(stage, Reject) else stage.steps


def _is_of(checkpoint: Checkpoint | None, stage: Stage) -> bool:
    return checkpoint is not None and checkpoint.position["stage"] == stage.name


def _same_threads(session: Session, threads: int | None) -> None:
    """Sums are added up in an order that depends on the number of threads."""
    if threads is not None and threads != torch.get_num_threads():
        session.page.note(
            f"the run began with {threads} threads, this machine would take "
            f"{torch.get_num_threads()}: going on with {threads}, so that the result is the same"
        )
        torch.set_num_threads(threads)


def _clean(path: Path) -> None:
    """What a killed run had half written."""
    for pattern in ("stages/.*", "data/.*", ".tokenizer*", ".final*", "final.new"):
        for left in path.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _budget(text: str | None, recipe: Recipe) -> Budget | None:
    if text is None:
        return None
    budget = Budget.parse(text)
    budget.check(recipe.machine)
    return budget


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """The first signal to stop is noticed between two steps; the second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        session.signal = number
        for each in _SIGNALS:
            signal.signal(each, before[each])

    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each in _SIGNALS:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """The same sums in the same order every time, whatever the machine is doing."""
    before = torch.are_deterministic_algorithms_enabled()
    # Empty tensors need no filling: nothing reads them before they are written.
    settings: Any = import_module("torch.utils.deterministic")
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled
