"""CausalLM: embedding, decoder layers, norm and head of every family; it trains and it serves.

Module names are the checkpoint's, so the state dict is the Hugging Face layout but for the stacked
experts and the MTP modules (see checkpoint_names).

T tokens (packed, no padding) · D model · V vocabulary
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mull.model.config import ModelConfig
from mull.model.decoder import DecoderLayer
from mull.model.layers import RMSNorm
from mull.model.mtp import NextTokenModule
from mull.model.rope import Rope
from mull.model.sequences import Sequences


class Decoder(nn.Module):
    """Everything below the head; bears the name `model` in checkpoints."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, device=device, dtype=dtype)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(width, config.rms_norm_eps, device=device, dtype=dtype)
        self.rope = Rope(config)
        # Training only: layers keep their input alone and are computed again going backward.
        self.checkpointing = False

    def forward(self, ids_T: Tensor, seqs: Sequences) -> Tensor:
        x_TD = self.embed_tokens(ids_T)
        rope = self.rope(seqs.positions_T)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, seqs, rope, use_reentrant=False)
            else:
                x_TD = layer(x_TD, seqs, rope)
        return self.norm(x_TD)


class CausalLM(nn.Module):
    """A language model; `mtp=True` also builds its multi-token-prediction modules in `self.mtp`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        mtp: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, device=device, dtype=dtype)
        self.lm_head = nn.Linear(
            config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype
        )
        self.mtp = nn.ModuleList(
            NextTokenModule(config, depth, device=device, dtype=dtype)
            for depth in range(config.num_nextn_predict_layers if mtp else 0)
        )
        self.tie_weights()

    def tie_weights(self) -> None:
        """Shares embedding and head where so configured; call after replacing parameters."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids_T: Tensor, seqs: Sequences) -> Tensor:
        """Hidden states after the final norm, [T, D]. ids_T: int64."""
        return self.model(ids_T, seqs)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """float32 [T, V]."""
        return self.lm_head(hidden_TD).float()

    def mtp_hidden(
        self, hidden_TD: Tensor, next_ids_T: Tensor, seqs: Sequences, depth: int = 0
    ) -> Tensor:
        """One depth of multi-token prediction, [T, D]; `logits` of it: the token after next_ids_T.

        hidden_TD: what `forward` gave (depth 0) or this method for depth - 1; next_ids_T: the token
        that follows each position, depth + 1 places on. Its attention is layer
        num_hidden_layers + depth of `seqs`.
        """
        return self.mtp[depth](hidden_TD, next_ids_T, seqs, self.model)

    @torch.no_grad()
    def init_weights(self, *, generator: torch.Generator | None = None) -> None:
        """Fresh weights for training: normal with the config's std, norms 1, biases 0.

        Also makes a model whole that was built on the meta device and then given empty memory.
        """
        self.tie_weights()
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        for buffer in self.buffers():
            buffer.zero_()
