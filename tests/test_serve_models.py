"""Models that come and go while answers are kept."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import httpx2
from wire_server import Api, serving, thinking_model

from mull.serve.api.pulls import Pulls


def test_an_unloaded_model_is_gone_though_its_answers_are_kept(tmp_path: Path) -> None:
    with serving(thinking_model(tmp_path)) as running:
        api = Api(running.url)
        chat = api.chat()
        begun = api.begin(chat, api.say(chat, "one")["id"])
        api.end_of(begun["response_id"])
        said = httpx2.post(f"{running.url}/v1/responses", json={"input": "One?"}, timeout=60).json()
        pool = running.server.parts.pool
        (name,) = pool.loaded
        weights = weakref.ref(pool.loaded[name].llm.engine.model)
        assert weights() is not None
        assert api.client.post(f"/api/models/{name}/unload").status_code < 300
        gc.collect()
        assert weights() is None
        # What was said can be read all the same, from its first event on.
        assert api.end_of(begun["response_id"])["text"]
        again = httpx2.get(f"{running.url}/v1/responses/{said['id']}").json()
        assert again["output"] == said["output"]


def test_a_page_that_follows_a_pull_does_not_hold_up_the_end() -> None:
    async def told() -> list[str]:
        pulls = Pulls()
        pulls.states["a/b"] = {"state": "running"}  # and does not hear that it shall end
        states = []
        async with asyncio.timeout(60):
            async for state in pulls.follow("a/b", keep_alive=60):
                assert state is not None
                states.append(state["state"])
                await pulls.close()
        return states

    assert asyncio.run(told()) == ["running"]


def test_a_server_that_ends_tells_its_pulls_before_it_waits_for_anybody(tmp_path: Path) -> None:
    with serving(thinking_model(tmp_path)) as running:
        app = running.server.app
        httpx2.get(f"{running.url}/health")
        app.state.pulls.states["a/b"] = {"state": "running"}
        with httpx2.stream(
            "GET", f"{running.url}/api/models/a%2Fb/pull/events", timeout=60
        ) as followed:
            assert followed.status_code == 200
            running.server.should_exit = True
            for _ in followed.iter_raw():
                pass  # to its end, which comes before `shutdown_seconds` are over
    assert app.state.pulls.states["a/b"]["state"] == "running"
