"""The model a stage trains, with its optimiser: built, restored, and handed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mull.train.lora import adapter_state, adapters, load_adapter_state
from mull.train.models import Opened, refuse_vocabulary
from mull.train.peak import settled
from mull.train.recipe_parts import Balance
from mull.train.recipe_stages import LearnStage, Rl
from mull.train.session import Session, part_of, prefixed
from mull.train.state import Checkpoint
from mull.train.step import Learner

# The routers of a policy stand still but for its own gradient, so that replayed choices stay apt;
# those of a model with adapters are not trained at all.
_STILL = Balance(rate=0.0)


class Trainee:
    """updates: how many the stage makes in all; temperature: of its rollouts. opens_thinking: some
    of what is learnt follows a prompt that opens the thinking."""

    def __init__(
        self,
        session: Session,
        stage: LearnStage | Rl,
        updates: int,
        *,
        opened: Opened | None = None,
        temperature: float = 1.0,
        opens_thinking: bool = True,
    ) -> None:
        self.opens_thinking = opens_thinking
        self.opened = opened or session.models.begin(stage)
        self.model = self.opened.model
        self.writer = self.opened.writer
        refuse_vocabulary(self.model, self.writer)
        self.has_adapters = any(adapters(self.model))
        learning = stage if isinstance(stage, LearnStage) else None
        only_mtp = learning is not None and learning.learns == "mtp"
        is_balanced = not self.has_adapters and not only_mtp
        self.learner = Learner(
            self.model,
            stage.optimiser,
            updates,
            precision=settled(stage.precision),
            checkpointing=stage.checkpointing,
            mtp_weight=learning.mtp_weight if learning else 0.0,
            mtp_passes=learning.mtp_passes if learning else 1,
            only_mtp=only_mtp,
            balance=learning.balance if learning and is_balanced else _STILL,
            temperature=temperature,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Live tensors: save them before the next step."""
        own = adapter_state(self.model) if self.has_adapters else self.model.state_dict()
        moved, rest = self.learner.state()
        return {**prefixed("model", own), **prefixed("optimiser", moved)}, {"optimiser": rest}

    def restore(self, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
        """Raises TrainError where the checkpoint is of another model."""
        self.take_weights(checkpoint)
        # An optimiser that nothing has moved yet, whatever the step, has no tensors.
        moved = part_of(checkpoint, "optimiser", may_be_empty=True)
        self.learner.load_state(moved, facts["optimiser"])

    def take_weights(self, checkpoint: Checkpoint) -> None:
        own = part_of(checkpoint, "model")
        if self.has_adapters:
            load_adapter_state(self.model, own)
        else:
            self.model.load_state_dict(own)
