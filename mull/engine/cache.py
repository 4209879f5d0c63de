"""The cache's memory: one tensor for all layers, cut into blocks of tokens.

N blocks · S slots of a block · G key heads · d head width · c latent width
"""

from __future__ import annotations

import ctypes
from functools import cached_property

import torch
from torch import Tensor

from mull import kernels
from mull.errors import KernelError, RequestError
from mull.kernels.pages import zeros_in_huge_pages
from mull.model.config import ModelConfig

# What a default cache holds when memory allows: one long conversation, or many short ones.
DEFAULT_CACHE_TOKENS = 32768


class PagedCache:
    """GQA: keys[layer] and values[layer], [N, S, G, d]. MLA: latents[layer], [N, S, c].

    An int8 cache has the same axes, but its rows are longer (scales) and their bytes lie as the
    kernels want them: write and read it with them. extra_layers: how many come after the model's
    own, for multi-token prediction.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        extra_layers: int = 0,
    ) -> None:
        if dtype == torch.int8:
            _check_int8(config, block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.bytes_per_token = config.cache_bytes_per_token(dtype, extra_layers)
        layers = config.num_hidden_layers + extra_layers
        blocks = (num_blocks, block_size)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.latents: list[Tensor] = []
        if config.is_mla:
            width = config.latent_dim
            if dtype == torch.int8:
                width = kernels.int8_latent_row_bytes(width, config.kv_lora_rank or 0)
            self.data = _zeros((layers, *blocks, width), dtype, device)
            self.latents = list(self.data)
        else:
            width = config.head_dim
            if dtype == torch.int8:
                width = kernels.int8_row_bytes(width)
            heads = (config.num_key_value_heads, width)
            self.data = _zeros((2 * layers, *blocks, *heads), dtype, device)
            self.keys = list(self.data[:layers])
            self.values = list(self.data[layers:])

    @cached_property
    def key_pointers(self) -> ctypes.Array[ctypes.c_void_p]:
        """Addresses of every layer's keys, as native code reads them."""
        return _addresses(self.keys)

    @cached_property
    def value_pointers(self) -> ctypes.Array[ctypes.c_void_p]:
        return _addresses(self.values)

    @cached_property
    def latent_pointers(self) -> ctypes.Array[ctypes.c_void_p]:
        return _addresses(self.latents)

    @property
    def bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy the content of blocks (from, to) in every layer."""
        if copies:
            sources, targets = zip(*copies, strict=True)
            self.data[:, list(targets)] = self.data[:, list(sources)]


def choose_num_blocks(
    config: ModelConfig,
    *,
    context: int,
    dtype: torch.dtype,
    block_size: int,
    cache_tokens: int | None,
    cache_bytes: int | None,
    available_bytes: int | None,
    extra_layers: int = 0,
) -> int:
    """How many blocks to keep: as asked for, else DEFAULT_CACHE_TOKENS or one whole context,
    whichever is more, within half of the memory the caller says is available."""
    block_bytes = config.cache_bytes_per_token(dtype, extra_layers) * block_size
    if cache_tokens is not None:
        tokens, name = cache_tokens, f"cache_tokens is {cache_tokens}"
    elif cache_bytes is not None:
        tokens, name = cache_bytes // block_bytes * block_size, f"cache_bytes is {cache_bytes}"
    else:
        tokens, name = max(DEFAULT_CACHE_TOKENS, context), "the cache"
        if available_bytes is not None:
            tokens = min(tokens, available_bytes // 2 // block_bytes * block_size)
            name = f"available memory is {available_bytes} bytes"
    num_blocks = -(-tokens // block_size)
    if num_blocks < 2:
        raise RequestError(
            f"{name}, too little for two cache blocks of {block_size} tokens "
            f"({block_bytes} bytes each): give the cache more"
        )
    return num_blocks


def _addresses(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _check_int8(config: ModelConfig, block_size: int) -> None:
    try:
        if config.is_mla:
            kernels.check_int8_latent_shape(config.latent_dim, block_size)
            return
        kernels.check_int8_shape(config.head_dim, block_size)
    except KernelError as error:
        raise RequestError(str(error)) from None


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Blocks are given out from the first one on: a short conversation stays in every layer's start.
    return zeros_in_huge_pages(shape, dtype, used_from_starts=True)
