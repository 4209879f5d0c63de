"""From logits to the next token of every sequence: penalties, temperature, filters, one draw a row.

Each row consumes one number, a function of its seed, sample and position alone, and looks it up in
its own cumulative distribution: what else is in the batch has no say. Native code draws where there
is any, else torch_draw.py.

B sequences (rows) · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from hashlib import blake2b
from struct import pack

import torch
from torch import Tensor

from mull import kernels
from mull.engine import torch_draw
from mull.engine.grammar import apply_masks
from mull.engine.request import SamplingParams, TokenLogprob
from mull.engine.sequence import Sequence


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
        raise torch_draw.damage()


def _greedy(logits_BV: Tensor, _seqs: Rows[Sequence], _drafted: Rows[Rows[int]]) -> list[int]:
    return torch_draw.greedy(logits_BV)


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
    if not tokens:
        return
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
    """One token a row by temperature, top_k, top_p, min_p and the row's own noise, with torch."""
    return torch_draw.draw(logits_BV, [seq.sampling for seq in seqs], _noise(seqs, drafted))


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
