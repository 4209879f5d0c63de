"""Bad requests are refused in one line that names the field, the value and what is allowed."""

import math

import pytest

from mull.engine.request import Request, SamplingParams, check_fits
from mull.errors import RequestError

BAD = [
    ("max_tokens", 0, "from 1"),
    ("max_tokens", -5, "from 1"),
    ("max_tokens", 2**40, "from 1"),
    ("max_tokens", 1.5, "whole number"),
    ("max_tokens", True, "whole number"),
    ("temperature", -0.1, "from 0 to 10"),
    ("temperature", 1e6, "from 0 to 10"),
    ("temperature", math.nan, "from 0 to 10"),
    ("temperature", math.inf, "from 0 to 10"),
    ("temperature", "hot", "number"),
    ("temperature", None, "number"),
    ("top_p", 0.0, "above 0 and at most 1"),
    ("top_p", 1.01, "above 0 and at most 1"),
    ("top_p", math.nan, "above 0 and at most 1"),
    ("top_k", -1, "from 0"),
    ("top_k", 2.0, "whole number"),
    ("min_p", -0.1, "from 0 to 1"),
    ("min_p", 2, "from 0 to 1"),
    ("repetition_penalty", 0, "from 0.01 to 10"),
    ("repetition_penalty", -math.inf, "from 0.01 to 10"),
    ("presence_penalty", 2.5, "from -2 to 2"),
    ("frequency_penalty", -3, "from -2 to 2"),
    ("logit_bias", {-1: 1.0}, "from 0"),
    ("logit_bias", {"a": 1.0}, "whole number"),
    ("logit_bias", {1: math.nan}, "from -100 to 100"),
    ("logit_bias", {1: 101}, "from -100 to 100"),
    ("logit_bias", [1], "map token ids"),
    ("stop", [""], "1 to 1000 characters"),
    ("stop", [1], "1 to 1000 characters"),
    ("stop", ["x" * 1001], "1 to 1000 characters"),
    ("stop", ["x"] * 65, "up to 64 strings"),
    ("stop", 5, "up to 64 strings"),
    ("stop_token_ids", [-1], "from 0"),
    ("stop_token_ids", "12", "list of token ids"),
    ("logprobs", -1, "from 0 to 20"),
    ("logprobs", 21, "from 0 to 20"),
    ("seed", 2**64, "whole number"),
    ("seed", 0.5, "whole number"),
    ("n", 0, "from 1 to 256"),
    ("n", 10**9, "from 1 to 256"),
    ("ignore_eos", "yes", "true or false"),
]


def nested() -> list:
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_sampling_value_is_refused_in_one_line(name, value, allowed):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert name.split("_")[0] in message
    assert allowed in message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "value", [10**400, -(10**5000), 1j, nested()], ids=["e400", "e5000", "i", "[["]
)
@pytest.mark.parametrize("name", sorted(SamplingParams.__dataclass_fields__))
def test_a_value_that_python_itself_cannot_show_is_refused_all_the_same(name, value):
    for given in (value, [value], {1: value}):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{name: given})
        assert len(str(caught.value)) < 200


def test_the_edges_of_the_ranges_are_allowed():
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, n=1, logprobs=0, seed=-1)
    SamplingParams(temperature=10, top_p=1e-6, min_p=1, presence_penalty=-2, frequency_penalty=2)


def test_a_token_id_that_python_cannot_show_is_refused():
    with pytest.raises(RequestError, match="prompt_ids holds an enormous integer"):
        check_fits(Request([10**5000]), ids=100, drawn=100, limit=10)


def test_a_single_stop_string_is_taken_whole():
    assert SamplingParams(stop="end").stop == ("end",)


@pytest.mark.parametrize("fields", [{"prompt_ids": []}, {"think_budget": -1}, {"namespace": 3}])
def test_a_bad_request_is_refused(fields):
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt_ids": [1], **fields})
    assert next(iter(fields)) in str(caught.value)
