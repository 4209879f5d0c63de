"""Low-rank adapters: what they change, what they leave alone, and the plain model they make."""

import pytest
import torch

from mull.errors import RecipeError, TrainError
from mull.model import CausalLM, ModelConfig, PackedSequences
from mull.train import lora
from mull.train.algorithms import sft
from mull.train.batch import Batch, Example
from mull.train.recipe_parts import Lora, Optimiser
from mull.train.step import Learner

SHAPE = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "attention_bias": True,
}


def plain_model() -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig.from_dict(SHAPE))
    model.init_weights()
    return model


def batch() -> Batch:
    torch.manual_seed(1)
    ids = [torch.randint(0, 50, (n,)).tolist() for n in (12, 7)]
    return Batch.pack([Example(each, [True] * len(each)) for each in ids])


def hidden(model: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(batch().ids_T, PackedSequences(batch().lengths))


def trained(spec: Lora) -> tuple[CausalLM, CausalLM]:
    """(the model before, the same one adapted and trained for some steps)."""
    before, model = plain_model(), plain_model()
    lora.inject(model, spec)
    learner = Learner(model, Optimiser(learning_rate=0.02, warmup=0), 5)
    for _ in range(5):
        learner.step([batch()], sft)
    return before, model


def test_fresh_adapters_change_nothing() -> None:
    model = plain_model()
    names = lora.inject(model, Lora(rank=4))
    assert len(names) == 2 * 7
    assert torch.equal(hidden(model), hidden(plain_model()))


def test_only_adapters_learn() -> None:
    before, model = trained(Lora(rank=4, layers=("q_proj", "down_proj")))
    old, new = before.state_dict(), model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)
    state = lora.adapter_state(model)
    assert len(state) == 2 * 2 * 2
    assert all(tensor.abs().max() > 0 for tensor in state.values())
    assert (hidden(model) - hidden(before)).abs().max() > 1e-2


def test_merged_weights_compute_the_same_without_adapters() -> None:
    _, model = trained(Lora(rank=4))
    again = plain_model()
    again.load_state_dict(lora.merged_state(model))
    torch.testing.assert_close(hidden(again), hidden(model), rtol=1e-4, atol=1e-5)


def test_adapters_come_back_from_their_state_alone() -> None:
    _, model = trained(Lora(rank=4))
    again = plain_model()
    lora.inject(again, Lora(rank=4), seed=9)
    lora.load_adapter_state(again, lora.adapter_state(model))
    assert torch.equal(hidden(again), hidden(model))


def test_adapters_of_another_rank_are_refused() -> None:
    _, model = trained(Lora(rank=4))
    other = plain_model()
    lora.inject(other, Lora(rank=2))
    with pytest.raises(TrainError, match="lora_a is"):
        lora.load_adapter_state(other, lora.adapter_state(model))


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'kv_b_proj', but .* can have adapters are down_proj, "):
        lora.inject(plain_model(), Lora(layers=("q_proj", "kv_b_proj")))


def test_a_head_that_no_adapter_can_reach_is_refused() -> None:
    """Losses take its weight, and never call it: an adapter there would have no gradient."""
    with pytest.raises(RecipeError, match="'lm_head'"):
        lora.inject(plain_model(), Lora(layers=("q_proj", "lm_head")))
