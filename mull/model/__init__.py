"""Configurations and modules of every model family; knows nothing of files, requests or caches."""

from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences, Sequences
from mull.model.transformer import CausalLM

__all__ = ["CausalLM", "ModelConfig", "PackedSequences", "Sequences"]
