"""reject: rejection sampling from the model the stage begins with; it trains nothing."""

from __future__ import annotations

from mull.train.recipe_stages import Reject
from mull.train.rewards import Judge
from mull.train.rollout import Sampler
from mull.train.session import Session
from mull.train.stages.collect import LocalTeacher, collect
from mull.train.state import Checkpoint


def reject(session: Session, stage: Reject, checkpoint: Checkpoint | None) -> None:
    """What is kept lies in `kept/<stage>.jsonl` of the run's folder."""
    opened = session.models.open(session.models.start_of(stage))
    writer = opened.writer
    sampler = Sampler(opened.model, writer, check=session.check)
    judge = Judge(session.tasks, stage.task, session.pool, writer)
    facts = None if checkpoint is None else checkpoint.facts["stage"]
    done = 0 if checkpoint is None else int(checkpoint.position["step"])
    collect(session, stage, LocalTeacher(session, stage, sampler, judge), facts, done)
