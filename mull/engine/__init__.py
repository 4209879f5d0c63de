"""Requests in, token streams out: the only way anything is generated in mull."""

from mull.engine.counters import Counters
from mull.engine.engine import Engine
from mull.engine.grammar import Grammar, Grammars
from mull.engine.packing import bind
from mull.engine.prepare import prepare
from mull.engine.request import (
    Event,
    Output,
    Request,
    SamplingParams,
    Timing,
    TokenLogprob,
    ToolCall,
    Usage,
)
from mull.engine.runner import AsyncRequestStream, EngineRunner, RequestStream
from mull.engine.speculation import check_mode, choose_mode

__all__ = [
    "AsyncRequestStream",
    "Counters",
    "Engine",
    "EngineRunner",
    "Event",
    "Grammar",
    "Grammars",
    "Output",
    "Request",
    "RequestStream",
    "SamplingParams",
    "Timing",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "bind",
    "check_mode",
    "choose_mode",
    "prepare",
]
