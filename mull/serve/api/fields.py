"""What the page's routes share: who asks, the store, and fields with bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from mull.serve.accounts.owner import Owner, current_admin, current_owner
from mull.serve.serving import Serving, serving
from mull.serve.store import Store, the_store

AnOwner = Annotated[Owner, Depends(current_owner)]
AnAdmin = Annotated[Owner, Depends(current_admin)]
TheStore = Annotated[Store, Depends(the_store)]
TheServing = Annotated[Serving, Depends(serving)]

MAX_TEXT = 4_000_000  # characters: more than any context holds
MAX_FILES = 32

Text = Annotated[str, Field(max_length=MAX_TEXT)]
System = Annotated[str, Field(max_length=200_000)]
Title = Annotated[str, Field(max_length=300)]
Label = Annotated[str, Field(min_length=1, max_length=100)]
Labels = Annotated[list[Label], Field(max_length=32)]
ModelName = Annotated[str, Field(max_length=200)]
Id = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Ids = Annotated[list[Id], Field(max_length=MAX_FILES)]
Thinking = Literal["auto", "on", "off"]
ThinkBudget = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Form(BaseModel):
    """Fields nobody knows are ignored; only those that were given are looked at."""

    model_config = ConfigDict(extra="ignore")

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class Sampling(Form):
    """How tokens are drawn; None leaves it to the model."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class ChatSettings(Form):
    """What a conversation keeps for its coming answers."""

    sampling: Sampling | None = None
    thinking: Thinking | None = None
    think_budget: ThinkBudget | None = None

    def kept(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def page_of(items: list[Any]) -> dict[str, Any]:
    """A list that is whole."""
    return {"items": items, "next": None}
