"""From logits to the next token of every sequence: penalties, temperature, filters, one draw a row.

Each row consumes one number, a function of its seed, sample and position alone, and looks it up in
its own cumulative distribution: what else is in the batch has no say. Full sorts are avoided: the
best few candidates decide nearly every row, the rest fall back to the whole row.

B sequences (rows) · V vocabulary · K candidates · N blocks of a row · S entries of a block
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from hashlib import blake2b
from math import isfinite
from struct import pack

import numpy as np
import torch
from torch import Tensor

from mull import kernels
from mull.engine.grammar import apply_masks
from mull.engine.request import SamplingParams, TokenLogprob
from mull.engine.sequence import Sequence
from mull.errors import ModelError

# Candidates looked at first; a row whose filters reach further is sorted.
FEW = 64
BLOCK = 128


def sample(
    logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]] | None = None
) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of every row, and its log-probability where it was asked for.

    logits_BV: float32, row i belongs to seqs[i]; it is overwritten. Log-probabilities are the
    model's own, before penalties and (unless tempered) temperature. A sequence may have several
    rows: row i then comes after the tokens drafted[i], and draws what it would draw had they been
    accepted.
    """
    drafted = drafted or [()] * len(seqs)
    # The row alone decides which code draws it: the two differ in the last bit of a weight.
    is_native = kernels.can_draw(logits_BV)
    plain = [i for i, seq in enumerate(seqs) if is_native and seq.is_plain]
    if len(plain) == len(seqs):
        return _sample_plain(logits_BV, seqs, drafted)
    if not plain:
        return _sample_others(logits_BV, seqs, drafted)
    tokens = [0] * len(seqs)
    logprobs: list[TokenLogprob | None] = [None] * len(seqs)
    others = [i for i, seq in enumerate(seqs) if not seq.is_plain]
    for way, some in ((_sample_plain, plain), (_sample_others, others)):
        found = way(logits_BV[some], [seqs[i] for i in some], [drafted[i] for i in some])
        for i, token, logprob in zip(some, *found, strict=True):
            tokens[i], logprobs[i] = token, logprob
    return tokens, logprobs


def _sample_plain(
    logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """Rows whose logits are taken as they are: all in one native call."""
    wanted = [seq.sampling.logprobs is not None for seq in seqs]
    scales = [logprob_scale(seq.sampling) for seq in seqs] if any(wanted) else None
    tokens, told = _draw_natively(logits_BV, seqs, drafted, scales)
    if scales is None:
        return tokens, [None] * len(seqs)
    return tokens, [
        TokenLogprob(token, value) if is_wanted else None
        for token, value, is_wanted in zip(tokens, told, wanted, strict=True)
    ]


def _sample_others(
    logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]
) -> tuple[list[int], list[TokenLogprob | None]]:
    wants_logprobs = [i for i, seq in enumerate(seqs) if seq.sampling.logprobs is not None]
    raw_RV = logits_BV[wants_logprobs] if wants_logprobs else None
    if raw_RV is not None and any(seq.sampling.tempered_logprobs for seq in seqs):
        _temper(raw_RV, [seqs[i].sampling for i in wants_logprobs])
    tokens = choose(logits_BV, seqs, drafted)
    logprobs: list[TokenLogprob | None] = [None] * len(seqs)
    if raw_RV is not None:
        chosen = [tokens[i] for i in wants_logprobs]
        tops = [seqs[i].sampling.logprobs or 0 for i in wants_logprobs]
        for i, logprob in zip(wants_logprobs, token_logprobs(raw_RV, chosen, tops), strict=True):
            logprobs[i] = logprob
    return tokens, logprobs


def _temper(logits_BV: Tensor, params: Rows[SamplingParams]) -> None:
    """In place, the rows that want it; greedy ones have no distribution but the model's own."""
    logits_BV *= logits_BV.new_tensor([logprob_scale(p) for p in params])[:, None]


def logprob_scale(params: SamplingParams) -> float:
    """What logits are multiplied by before log-probabilities are told."""
    return 1.0 / params.temperature if params.tempered_logprobs and not params.is_greedy else 1.0


def choose(logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]) -> list[int]:
    """As `sample`, without log-probabilities."""
    adjust(logits_BV, seqs, drafted)
    if kernels.can_draw(logits_BV):
        return _draw_natively(logits_BV, seqs, drafted)[0]
    ways = [_greedy if seq.sampling.is_greedy else draw for seq in seqs]
    if len(set(ways)) == 1:
        return ways[0](logits_BV, seqs, drafted)
    tokens = [0] * len(seqs)
    for way in (_greedy, draw):
        some = [i for i, own in enumerate(ways) if own is way]
        found = way(logits_BV[some], [seqs[i] for i in some], [drafted[i] for i in some])
        for i, token in zip(some, found, strict=True):
            tokens[i] = token
    return tokens


def choose_surely(
    logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]
) -> tuple[list[int], list[float]]:
    """As `choose`; also the share of each row's likeliest token, after penalties and at the row's
    temperature (at 1 where the likeliest is taken), before filters."""
    tokens = choose(logits_BV, seqs, drafted)
    scaled_BV = logits_BV * logits_BV.new_tensor(inverse_temperatures(seqs, greedy=1.0))[:, None]
    sureness_B = (scaled_BV.amax(-1) - scaled_BV.logsumexp(-1)).exp()
    return tokens, sureness_B.tolist()


def inverse_temperatures(seqs: Rows[Sequence], *, greedy: float = 0.0) -> list[float]:
    """`greedy`: of sequences that take the likeliest token."""
    return [greedy if seq.sampling.is_greedy else 1.0 / seq.sampling.temperature for seq in seqs]


def _draw_natively(
    logits_BV: Tensor,
    seqs: Rows[Sequence],
    drafted: Rows[Rows[int]],
    scales: list[float] | None = None,
) -> tuple[list[int], list[float]]:
    inverses = inverse_temperatures(seqs)
    noise = _noise(seqs, drafted) if any(inverses) else [0.0] * len(seqs)
    tokens, _, logprobs = kernels.draw(
        logits_BV, inverses, noise, logprob_scales=scales, filters=filters_of(seqs)
    )
    refuse_damage(tokens)
    return tokens, logprobs


def filters_of(seqs: Rows[Sequence]) -> kernels.Filters | None:
    """None where no row has any."""
    params = [seq.sampling for seq in seqs]
    if not any(p.has_filters for p in params):
        return None
    return kernels.Filters(
        torch.tensor([p.top_k for p in params], dtype=torch.int64),
        torch.tensor([p.top_p for p in params], dtype=torch.float64),
        torch.tensor([p.min_p for p in params], dtype=torch.float32),
    )


def refuse_damage(tokens: list[int]) -> None:
    """ModelError where a token is -1 (see kernels.draw)."""
    if min(tokens) < 0:
        raise _damage()


def _greedy(logits_BV: Tensor, _seqs: Rows[Sequence], _drafted: Rows[Rows[int]]) -> list[int]:
    return greedy(logits_BV)


def greedy(logits_BV: Tensor) -> list[int]:
    """Id of each row's largest logit, the lowest id of equal ones."""
    if logits_BV.device.type == "cpu":
        # torch's argmax over long rows uses no vector instructions, numpy's does.
        rows_BV = logits_BV.numpy()
        ids: list[int] = rows_BV.argmax(axis=1).tolist()
        best = [float(rows_BV[row, token]) for row, token in enumerate(ids)]
    else:
        best_B, ids_B = logits_BV.max(-1)
        best, ids = best_B.tolist(), ids_B.tolist()
    _refuse_damage(best)
    return ids


def _refuse_damage(best: list[float]) -> None:
    """The rows' largest logits: a NaN anywhere in a row shows in them."""
    if not all(map(isfinite, best)):
        raise _damage()


def _damage() -> ModelError:
    return ModelError(
        "the model computed a logit that is no finite number: its weights are damaged "
        "(mull pull NAME checks and mends them), or its numbers need --precision fp32"
    )


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (counter-based noise)."""
    digest = blake2b(pack("<QQQ", seed % 2**64, index, position), digest_size=6).digest()
    # 48 bits, so that no product with a total can round up to the total.
    return int.from_bytes(digest, "little") / 2**48


def adjust(logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]) -> None:
    """Repetition, presence and frequency penalties, logit_bias, then grammars, in place."""
    if any(seq.sampling.has_penalties for seq in seqs):
        _penalise(logits_BV, seqs, drafted)
    biases = [
        (row, token, bias)
        for row, seq in enumerate(seqs)
        for token, bias in seq.sampling.logit_bias.items()
    ]
    if biases:
        rows, tokens, values = zip(*biases, strict=True)
        device = logits_BV.device
        index = (torch.tensor(rows, device=device), torch.tensor(tokens, device=device))
        bias_N = torch.tensor(values, dtype=logits_BV.dtype, device=device)
        logits_BV.index_put_(index, bias_N, accumulate=True)
    if any(seq.constraint is not None for seq in seqs):
        apply_masks(logits_BV, [seq.constraint for seq in seqs])


def _penalise(logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]) -> None:
    rows: list[int] = []
    tokens: list[int] = []
    counts: list[int] = []
    for row, seq in enumerate(seqs):
        if seq.sampling.has_penalties:
            seen = _seen(seq, drafted[row])
            rows.extend([row] * len(seen))
            tokens.extend(seen.keys())
            counts.extend(seen.values())
    device = logits_BV.device
    # A prompt may hold ids of the head's padding, which is never sampled and has no logit here.
    live_P = torch.tensor(tokens, device=device) < logits_BV.shape[1]
    row_P = torch.tensor(rows, device=device)[live_P]
    token_P = torch.tensor(tokens, device=device)[live_P]
    count_P = torch.tensor(counts, dtype=torch.float32, device=device)[live_P]
    penalties_B3 = torch.tensor(
        [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
            for p in (seq.sampling for seq in seqs)
        ],
        device=device,
    )
    repetition_P, presence_P, frequency_P = penalties_B3[row_P].unbind(-1)
    x_P = logits_BV[row_P, token_P]
    x_P = torch.where(x_P > 0, x_P / repetition_P, x_P * repetition_P)
    x_P -= presence_P * (count_P > 0) + frequency_P * count_P
    logits_BV[row_P, token_P] = x_P


def _seen(seq: Sequence, drafted: Rows[int]) -> dict[int, int]:
    """Occurrences in the answer and the drafted tokens after it; 0 for the prompt's alone."""
    seen = dict(seq.seen) if drafted else seq.seen
    for token in drafted:
        seen[token] = seen.get(token, 0) + 1
    return seen


def noise_of(seqs: Rows[Sequence], *, ahead: int) -> list[float]:
    """Each row's number for the token after `ahead` more; 0 where the likeliest is taken."""
    return [
        0.0 if seq.sampling.is_greedy else uniform(seq.seed, seq.index, seq.generated + ahead)
        for seq in seqs
    ]


def _noise(seqs: Rows[Sequence], drafted: Rows[Rows[int]]) -> list[float]:
    return [
        uniform(seq.seed, seq.index, seq.generated + len(tokens))
        for seq, tokens in zip(seqs, drafted, strict=True)
    ]


def draw(logits_BV: Tensor, seqs: Rows[Sequence], drafted: Rows[Rows[int]]) -> list[int]:
    """One token a row by temperature, top_k, top_p, min_p and the row's own noise."""
    device = logits_BV.device
    params = [seq.sampling for seq in seqs]
    noise_B = torch.tensor(_noise(seqs, drafted), dtype=torch.float64, device=device)
    inverse_B1 = torch.tensor([[1.0 / p.temperature] for p in params], device=device)
    weights_BV, sums_BN = _weights(logits_BV, inverse_B1)
    filtered = [i for i, p in enumerate(params) if p.has_filters]
    if not filtered:
        return _draw_whole(weights_BV, sums_BN, noise_B).tolist()
    if len(filtered) == len(params):
        return _draw_filtered(weights_BV, sums_BN, noise_B, seqs)
    tokens = [0] * len(params)
    whole = [i for i, p in enumerate(params) if not p.has_filters]
    for i, token in zip(
        whole, _draw_whole(weights_BV[whole], sums_BN[whole], noise_B[whole]).tolist(), strict=True
    ):
        tokens[i] = token
    some = _draw_filtered(
        weights_BV[filtered], sums_BN[filtered], noise_B[filtered], [seqs[i] for i in filtered]
    )
    for i, token in zip(filtered, some, strict=True):
        tokens[i] = token
    return tokens


def _weights(logits_BV: Tensor, inverse_temperature_B1: Tensor) -> tuple[Tensor, Tensor]:
    """exp((logits - best) / temperature), zero-padded to whole blocks, and the sums of the blocks.

    The best token weighs 1, so min_p compares with these weights directly.
    """
    batch, vocabulary = logits_BV.shape
    best_B1 = logits_BV.amax(-1, keepdim=True)
    _refuse_damage(best_B1.flatten().tolist())
    padded = -(-vocabulary // BLOCK) * BLOCK
    weights_BV = logits_BV.new_zeros(batch, padded)
    live = weights_BV[:, :vocabulary]
    torch.sub(logits_BV, best_B1, out=live)
    live.mul_(inverse_temperature_B1).exp_()
    # Sums over fixed blocks: the same order of addition whatever the batch.
    return weights_BV, weights_BV.view(batch, -1, BLOCK).sum(-1).double()


def _draw_whole(weights_BV: Tensor, sums_BN: Tensor, noise_B: Tensor) -> Tensor:
    """Inverse cumulative distribution in vocabulary order: first the block, then in it."""
    batch = len(weights_BV)
    ends_BN = sums_BN.cumsum(-1)
    target_B1 = (noise_B * ends_BN[:, -1])[:, None]
    block_B1 = torch.searchsorted(ends_BN, target_B1, right=True).clamp_(max=ends_BN.shape[1] - 1)
    start_B1 = (ends_BN - sums_BN).gather(1, block_B1)
    rows_B = torch.arange(batch, device=weights_BV.device)
    inside_BS = weights_BV.view(batch, -1, BLOCK)[rows_B, block_B1[:, 0]]
    return block_B1[:, 0] * BLOCK + _pick(inside_BS, target_B1 - start_B1)


def _pick(weights_BK: Tensor, target_B1: Tensor) -> Tensor:
    """First entry whose cumulative weight passes the target; never one of weight zero."""
    ends_BK = weights_BK.double().cumsum(-1)
    picked_B = (ends_BK <= target_B1).sum(-1)
    places_K = torch.arange(weights_BK.shape[1], device=weights_BK.device)
    last_B = (places_K * (weights_BK > 0)).amax(-1)
    return torch.minimum(picked_B, last_B)


def _draw_filtered(
    weights_BV: Tensor, sums_BN: Tensor, noise_B: Tensor, seqs: Rows[Sequence]
) -> list[int]:
    """The best few decide nearly every row; the others have their whole row sorted."""
    vocabulary = weights_BV.shape[1]
    # A top_k of the whole vocabulary or more filters nothing.
    filters = [
        (p.top_k if p.top_k < vocabulary else 0, p.top_p, p.min_p)
        for p in (seq.sampling for seq in seqs)
    ]
    filters_B3 = torch.tensor(filters, dtype=torch.float64, device=weights_BV.device)
    total_B1 = sums_BN.sum(-1, keepdim=True)
    best_BK, ids_BK = _best(weights_BV, min(FEW, vocabulary))
    keep_BK, is_covered_B = _kept(best_BK, total_B1, filters_B3)
    picked_B = _draw_kept(best_BK * keep_BK, ids_BK, noise_B)
    tokens: list[int] = torch.where(is_covered_B, picked_B, -1).tolist()
    rest = [i for i, token in enumerate(tokens) if token < 0]
    if rest:
        weights_RV = weights_BV[rest]
        sorted_RV = _sorted(weights_RV)
        keep_RV, _ = _kept(sorted_RV, total_B1[rest], filters_B3[rest])
        least_R1 = torch.where(keep_RV, sorted_RV, torch.inf).amin(-1, keepdim=True)
        kept_RV = weights_RV.masked_fill_(weights_RV < least_R1, 0.0)
        sums_RN = kept_RV.view(len(rest), -1, BLOCK).sum(-1).double()
        drawn = _draw_whole(kept_RV, sums_RN, noise_B[rest]).tolist()
        for i, token in zip(rest, drawn, strict=True):
            tokens[i] = token
    return tokens


def _kept(best_BK: Tensor, total_B1: Tensor, filters_B3: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a row's best weights (in falling order) its filters keep, and for which rows no
    weight beyond these could be kept.

    filters_B3: top_k (0 is off), top_p, min_p. total_B1: the weight of the whole row.
    """
    top_k_B1, top_p_B1, min_p_B1 = filters_B3.split(1, dim=-1)
    size = best_BK.shape[1]
    places_K = torch.arange(size, device=best_BK.device)
    ends_BK = best_BK.cumsum(-1, dtype=torch.float64)
    has_top_k_B1 = top_k_B1 > 0
    # top_p counts within what top_k leaves.
    last_B1 = (top_k_B1.long() - 1).clamp_(min=0, max=size - 1)
    total_B1 = torch.where(has_top_k_B1, ends_BK.gather(1, last_B1), total_B1)
    mass_B1 = torch.where(top_p_B1 < 1, top_p_B1 * total_B1, torch.inf)
    keep_BK = (ends_BK - best_BK < mass_B1) & (best_BK >= min_p_B1)
    keep_BK &= (places_K < top_k_B1) | ~has_top_k_B1
    keep_BK[:, 0] = True
    is_covered_B1 = torch.where(
        has_top_k_B1, top_k_B1 <= size, ends_BK[:, -1:] >= mass_B1
    ) | ~has_top_k_B1 & (best_BK[:, -1:] < min_p_B1)
    return keep_BK, is_covered_B1[:, 0]


def _draw_kept(kept_BK: Tensor, ids_BK: Tensor, noise_B: Tensor) -> Tensor:
    target_B1 = noise_B[:, None] * kept_BK.sum(-1, keepdim=True, dtype=torch.float64)
    return ids_BK.gather(1, _pick(kept_BK, target_B1)[:, None])[:, 0]


def _sorted(weights_BV: Tensor) -> Tensor:
    """The weights of each row in falling order."""
    if weights_BV.device.type == "cpu":
        # numpy sorts plain floats with vector instructions, over ten times faster than torch.
        return torch.from_numpy(-np.sort(-weights_BV.numpy(), axis=-1))
    return weights_BV.sort(dim=-1, descending=True).values


def _best(weights_BV: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest weights of each row in falling order, and their ids."""
    blocks_BNS = weights_BV.view(len(weights_BV), -1, BLOCK // 2)
    if blocks_BNS.shape[1] <= size:
        return weights_BV.topk(size)
    # The best K entries lie within the K blocks whose maxima are largest.
    block_BK = blocks_BNS.amax(-1).topk(size, sorted=False).indices
    width = BLOCK // 2
    near_BKS = blocks_BNS.gather(1, block_BK[:, :, None].expand(-1, -1, width))
    best_BK, place_BK = near_BKS.flatten(1).topk(size)
    return best_BK, block_BK.gather(1, place_BK // width) * width + place_BK % width


def token_logprobs(logits_BV: Tensor, chosen: list[int], tops: list[int]) -> list[TokenLogprob]:
    """Log-probability of each row's chosen token and of its `tops[i]` best."""
    norm_B = logits_BV.logsumexp(-1)
    chosen_B1 = torch.tensor(chosen, device=logits_BV.device)[:, None]
    own = (logits_BV.gather(1, chosen_B1)[:, 0] - norm_B).tolist()
    if not any(tops):
        return [TokenLogprob(token, value) for token, value in zip(chosen, own, strict=True)]
    best_BK, ids_BK = logits_BV.topk(min(max(tops), logits_BV.shape[1]))
    values = (best_BK - norm_B[:, None]).tolist()
    ids = ids_BK.tolist()
    return [
        TokenLogprob(
            token, own[i], tuple(zip(ids[i][: tops[i]], values[i][: tops[i]], strict=True))
        )
        for i, token in enumerate(chosen)
    ]
