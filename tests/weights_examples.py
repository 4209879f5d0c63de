"""Tiny random models for the weights tests, written as Hugging Face folders and as GGUF files.

What llama.cpp's converter does to names, rows and metadata is written down here a second time,
in its plainest form, so that the reader is not tested against itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mull.model import CausalLM, PackedSequences
from mull.weights import ModelFiles

GQA: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA: dict[str, Any] = {
    **GQA,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
DEEPSEEK_YARN = {**YARN, "type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707}

TINY: dict[str, dict[str, Any]] = {
    "llama": {**GQA, "model_type": "llama"},
    "llama_tied": {**GQA, "model_type": "llama", "tie_word_embeddings": True},
    "llama_biases": {**GQA, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3_rope": {
        **GQA,
        "model_type": "llama",
        "head_dim": 32,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
    },
    "llama_linear": {**GQA, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4}},
    "qwen2": {**GQA, "model_type": "qwen2"},
    "qwen2_yarn": {**GQA, "model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {**GQA, "model_type": "qwen3", "head_dim": 32},
    "deepseek_v2_lite": {
        **MLA,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "rope_scaling": DEEPSEEK_YARN,
    },
    "deepseek_v2_grouped": {
        **MLA,
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
    },
    "deepseek_v3": {
        **MLA,
        "model_type": "deepseek_v3",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_scaling": {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}


def random_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """transformers' model of TINY[name], every tensor random (norms and biases too), float32."""
    values = {**TINY[name], **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in key:
                continue
            if tensor.ndim == 1:
                base = 0.0 if "bias" in key else 1.0
                tensor.copy_(base + 0.1 * torch.randn_like(tensor))
            else:
                tensor.normal_(0.0, 0.08)
    return model


def our_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """float32 [T, V] from mull, without a cache."""
    with torch.no_grad():
        return model.logits(model(torch.tensor(ids), PackedSequences([len(ids)])))


def random_ids(count: int, vocab_size: int = 160, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (count,), generator=generator).tolist()


def gguf_files(path: Path) -> ModelFiles:
    return ModelFiles(path.stem, path, "gguf")


def folder_files(path: Path) -> ModelFiles:
    return ModelFiles(path.name, path, "hf")


def oracle_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """float32 [T, V] from transformers."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def saved_folder(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by checkpoint name."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
}
Q8 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32


def gguf_metadata(writer: gguf.GGUFWriter, config: Any, *, split_mla: bool) -> None:
    is_mla = config.model_type.startswith("deepseek")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if is_mla:
        _deepseek_metadata(writer, config, split_mla=split_mla)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        writer.add_rope_dimension_count(head_dim)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if is_mla:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _deepseek_metadata(writer: gguf.GGUFWriter, config: Any, *, split_mla: bool) -> None:
    is_v3 = config.model_type == "deepseek_v3"
    head = config.qk_nope_head_dim + config.qk_rope_head_dim
    if split_mla:
        writer.add_head_count_kv(1)
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(head)
        writer.add_value_length_mla(config.v_head_dim)
    else:
        writer.add_head_count_kv(config.num_attention_heads)
        writer.add_key_length(head)
        writer.add_value_length(config.v_head_dim)
    writer.add_q_lora_rank(config.q_lora_rank or 0)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(bool(config.norm_topk_prob))
    gating = gguf.ExpertGatingFuncType.SIGMOID if is_v3 else gguf.ExpertGatingFuncType.SOFTMAX
    writer.add_expert_gating_func(gating)
    if config.n_group and config.n_group > 1:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def interleaved_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """The llama architecture's order: in each head, row j of the first half, then of the second."""
    size = rows.shape[0] // heads
    order = [
        head * size + half * (size // 2) + j
        for head in range(heads)
        for j in range(size // 2)
        for half in range(2)
    ]
    return rows[order]


def gguf_tensors(
    config: Any, checkpoint: dict[str, torch.Tensor], *, split_mla: bool
) -> dict[str, np.ndarray]:
    """The checkpoint's tensors as llama.cpp's converter would write them."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    merged: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in checkpoint.items():
        array = tensor.float().numpy()
        if ".experts." in name:
            before, _, rest = name.partition(".experts.")
            experts.setdefault(f"{before}.experts.{rest.split('.', 1)[1]}", []).append(
                (int(rest.split(".")[0]), array)
            )
            continue
        if config.model_type == "llama" and ".q_proj." in name:
            array = interleaved_rows(array, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            array = interleaved_rows(array, config.num_key_value_heads)
        if split_mla and ".kv_b_proj." in name:
            heads, nope = config.num_attention_heads, config.qk_nope_head_dim
            parts = array.reshape(heads, nope + config.v_head_dim, config.kv_lora_rank)
            merged[name.replace("kv_b", "k_b")] = parts[:, :nope].transpose(0, 2, 1)
            merged[name.replace("kv_b", "v_b")] = parts[:, nope:]
            continue
        merged[name.replace("e_score_correction_bias", "e_score_correction.bias")] = array
    for name, found in experts.items():
        merged[name] = np.stack([array for _, array in sorted(found, key=lambda pair: pair[0])])
    return {
        names.get_name(name, try_suffixes=(".weight", ".bias")): np.ascontiguousarray(array)
        for name, array in merged.items()
    }


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """The tensor rope_freqs.weight of a llama3-scaled model."""
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = (rope[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(
    model: Any,
    path: Path,
    *,
    split_mla: bool = True,
    quantise: gguf.GGMLQuantizationType = F32,
    tensors_per_part: int = 0,
    tokens: int = 0,
    mtp_layers: int = 0,
    change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None,
) -> Path:
    """A GGUF of a transformers model.

    quantise: the type of its matrices; tokens: how many a made-up vocabulary has; change: a last
    hand at the tensors, by their names in the file.
    """
    folder = saved_folder(model, path.parent / (path.stem + "_hf"))
    config = model.config
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    gguf_metadata(writer, config, split_mla=split_mla)
    if mtp_layers:
        writer.add_nextn_predict_layers(mtp_layers)
        writer.add_block_count(config.num_hidden_layers + mtp_layers)
    writer.add_tokenizer_model("none")
    if tokens:
        writer.add_token_list([f"token{i}" for i in range(tokens)])
        writer.add_token_scores([0.5] * tokens)
        writer.add_token_types([1] * tokens)
        writer.add_add_bos_token(True)
    tensors = gguf_tensors(config, checkpoint_tensors(folder), split_mla=split_mla)
    if config.rope_parameters.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(config.rope_parameters, config.head_dim)
    change(tensors)
    for name, array in tensors.items():
        if array.ndim > 1 and quantise is not F32 and "ffn_gate_inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaModel:
    """A GGUF file run by llama.cpp itself on token ids: one thread, float32 cache, no flash."""

    def __init__(self, path: Path) -> None:
        from text_oracles import _silent, ffi, lib

        self.ffi, self.lib = ffi, lib
        lib.llama_log_set(_silent, ffi.NULL)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model != ffi.NULL, "llama.cpp refused the file"
        context_params = lib.llama_context_default_params()
        context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = 512
        context_params.n_threads = context_params.n_threads_batch = 1
        context_params.type_k = context_params.type_v = 0  # float32
        context_params.flash_attn_type = 0  # it would round queries to float16
        self.context = lib.llama_init_from_model(self.model, context_params)
        assert self.context != ffi.NULL
        self.width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.position = 0

    def logits(self, ids: list[int]) -> torch.Tensor:
        """float32 [T, V] of these tokens, which follow those given before."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self.position + i
            batch.n_seq_id[i] = batch.logits[i] = 1
            batch.seq_id[i][0] = 0
        assert self.lib.llama_decode(self.context, batch) == 0
        self.position += len(ids)
        pointers = [self.lib.llama_get_logits_ith(self.context, i) for i in range(len(ids))]
        size = self.width * 4
        rows = [np.frombuffer(self.ffi.buffer(row, size), np.float32) for row in pointers]
        found = torch.from_numpy(np.stack(rows))
        self.lib.llama_batch_free(batch)
        return found

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The next `count` tokens, each the likeliest, one decode step after another."""
        picked = [int(self.logits(prompt)[-1].argmax())]
        while len(picked) < count:
            picked.append(int(self.logits(picked[-1:])[0].argmax()))
        return picked

    def close(self) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def llama_cpp_logits(path: Path, ids: list[int]) -> torch.Tensor:
    """float32 [T, V] of llama.cpp itself, with a float32 cache."""
    model = LlamaModel(path)
    logits = model.logits(ids)
    model.close()
    return logits
