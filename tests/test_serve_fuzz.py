"""Requests made up from the server's own OpenAPI description: no answer may be a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from wire_server import running_server, thinking_model

EXAMPLES = 6


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MULL_HOME", str(folder / "home"))  # models may be deleted by name
        with running_server(thinking_model(folder), context=512) as url:
            yield url


def test_no_request_that_the_description_allows_or_nearly_allows_breaks_the_server(url):
    described = schemathesis.openapi.from_url(f"{url}/docs/openapi.json")
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()
        # What is meant to last, or to reach out: tested where it belongs.
        if operation.path.endswith(("/pull", "/events")):
            continue
        tried += 1
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            _fuzz(operation, mode)
    assert tried >= 10


def _fuzz(operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES // 2,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def one(case):
        response = case.call(timeout=300)
        assert response.status_code < 500, (case.as_curl_command()[:2000], response.text[:500])

    with suppress(Unsatisfiable):  # nothing can be wrong with a request that takes nothing
        one()


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"messages": "x"}',
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": 1e999}]}',
    b"[" * 50_000,
    b'{"a":' * 5_000,
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1' + b"0" * 5000 + b"}",
    b'{"input": [{"type": []}], "messages": [{"role": "tool", "content": []}], "max_tokens": 1}',
    b'{"input": "x", "tools": [{"type": "function"}], "messages": [], "prompt": []}',
]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_no_broken_body_breaks_the_server(url, path):
    for body in BODIES:
        response = httpx2.post(
            f"{url}{path}", content=body, headers={"Content-Type": "application/json"}, timeout=300
        )
        assert response.status_code < 500, (body[:80], response.text[:300])
        assert response.status_code == 200 or "error" in response.json()
