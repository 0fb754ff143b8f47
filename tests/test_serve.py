"""The server, as its clients see it: the official client, curl, and clients that keep only the messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai
import pytest
from fake_server import FakeServer

from rlver.cli.main import main
from rlver.core.dialogue import Dialogue, StopReason
from rlver.core.emotion import get_preset
from rlver.core.seeds import derive
from rlver.core.transcript import Transcript
from rlver.rollout import run
from rlver.serve.streaming import DeltaSplitter
from rlver.stories import benchmark_profiles
from rlver.users.embedded.user import EmbeddedUser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

REPLIES = [
    "It was not your fault, you did nothing wrong.", "That must have hurt a lot.", "Tell me more, I am listening.",
    "What you did took courage.", "Maybe they were afraid of losing face.", "Here is what you could try: call them.",
]  # fmt: skip


@contextmanager
def serving(*more: str, token: str = "") -> Iterator[str]:
    """The address of a running `rlver serve`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RLVER_SERVE_TOKEN": token}
    process = subprocess.Popen(
        [sys.executable, "-m", "rlver", "serve", "--port", "0", *more],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        address = line.split(" at ")[1].split()[0]
        place = urlsplit(address)
        for _ in range(200):  # it tells its address a moment before it listens
            with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port), 1):
                break
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def chat(url: str, messages: list[Any], **extra: Any) -> Any:
    return client(url).chat.completions.create(model="sentient", messages=messages, extra_body=extra)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_fifty_dialogues_by_a_client_that_keeps_only_the_messages(url: str) -> None:
    async def converse(number: int) -> dict[str, Any]:
        messages: list[Any] = [user(f"Hello, I am client {number}.")]
        for reply in [REPLIES[(number + turn) % len(REPLIES)] + " " * turn for turn in range(12)]:
            answer = await remote.chat.completions.create(model="sentient", messages=messages)
            side: dict[str, Any] = answer.rlver  # type: ignore[attr-defined]
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
            if side["stop"]:
                return side
            messages.append(user(reply))
        raise AssertionError("no end")

    async def everybody() -> list[dict[str, Any]]:
        return await asyncio.gather(*(converse(number) for number in range(50)))

    remote = openai.AsyncOpenAI(base_url=url, api_key="none")
    sides = asyncio.run(everybody())
    assert len({side["session"] for side in sides}) == 50 and len({side["profile"] for side in sides}) == 50
    profiles = {profile.id: profile for profile in benchmark_profiles("en")}
    for number, side in enumerate(sides):
        # The same dialogue without a server ends in the same way.
        simulated_user = EmbeddedUser("en", "vanilla", "heldout")
        dialogue = Dialogue(profiles[side["profile"]], get_preset("sage"))
        seed = derive(side["seed"], "user")
        dialogue.begin(run(simulated_user.open(dialogue, seed)))
        turn = 0
        while dialogue.stop is None:
            dialogue.reply(REPLIES[(number + turn) % len(REPLIES)] + " " * turn)
            dialogue.react(run(simulated_user.react(dialogue, seed)))
            turn += 1
        assert (side["stop"], side["emotion"], side["turn"]) == (dialogue.stop, dialogue.emotion, turn)
        assert side["reward"] == dialogue.reward


def test_sessions_can_be_named_looked_at_and_dropped(url: str) -> None:
    http = client(url)
    profile = benchmark_profiles("en")[7].id
    begun = http.post("/sessions", cast_to=object, body={"profile": profile, "seed": 5})
    assert begun["profile"] == profile and begun["emotion"] == 40 and begun["opening"]
    answer = chat(url, [user(REPLIES[0])], session=begun["session"])
    assert answer.rlver["turn"] == 1 and answer.rlver["change"] in (-10, -5, 5, 10)
    state = http.get(f"/sessions/{begun['session']}", cast_to=object)
    assert [m["role"] for m in state["messages"]] == ["user", "assistant", "user"] and state["transcript"] is None
    for _ in range(9):
        if state["stop"]:
            break
        chat(url, [user("Cheer up.")], session=begun["session"])
        state = http.get(f"/sessions/{begun['session']}", cast_to=object)
    assert Transcript.model_validate(state["transcript"]).stop is StopReason(state["stop"])
    with pytest.raises(openai.ConflictError, match="has ended"):
        chat(url, [user("Hello?")], session=begun["session"])
    http.delete(f"/sessions/{begun['session']}", cast_to=object)
    with pytest.raises(openai.NotFoundError, match="no session"):
        chat(url, [user("Hello?")], session=begun["session"])


def test_the_same_turn_may_be_tried_again(url: str) -> None:
    messages: list[Any] = [user("Hi, it is me.")]
    opening = chat(url, messages).choices[0].message.content
    messages += [{"role": "assistant", "content": opening}]
    first = chat(url, [*messages, user(REPLIES[0])])
    other = chat(url, [*messages, user("You are to blame. Pull yourself together.")])
    again = chat(url, [*messages, user(REPLIES[0])])
    assert first.rlver["turn"] == other.rlver["turn"] == again.rlver["turn"] == 1
    assert first.rlver["session"] != other.rlver["session"]
    assert first.choices[0].message.content == again.choices[0].message.content
    assert other.rlver["emotion"] < 40


def test_curl_and_streams_work_too(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    body = json.dumps({"model": "sentient", "messages": [user("Hi")], "stream": True})
    shown = subprocess.run(
        ["curl", "-sN", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    events = [line.removeprefix("data: ") for line in shown.splitlines() if line]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["rlver"]["emotion"] == 40
    listed = subprocess.run(["curl", "-s", f"{url}/models"], capture_output=True, text=True, check=True).stdout
    assert [model["id"] for model in json.loads(listed)["data"]] == ["sentient"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "Expecting"),
        ("[]", "valid dictionary"),
        ('{"model": "sentient"}', "messages"),
        ('{"model": "sentient", "messages": []}', "messages"),
        ('{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', "the models are sentient"),
        ('{"model": "sentient", "messages": [{"role": "assistant", "content": "x"}]}', "role user"),
        ('{"model": "sentient", "messages": [{"role": "user", "content": "x"}], "profile": "nobody"}', "no profile"),
        ('{"model": "sentient", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, '
         '{"role": "user", "content": "z"}]}', "not held here"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_one_sentence(url: str, body: str, message: str) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", body.encode()))
    assert caught.value.code in (400, 404)
    assert message in json.loads(caught.value.read())["error"]["message"]


def test_a_token_is_asked_for_and_other_addresses_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(token="open-sesame-123") as address:
        with pytest.raises(openai.AuthenticationError, match="bearer token"):
            chat(address, [user("Hi")])
        answer = client(address, "open-sesame-123").chat.completions.create(model="sentient", messages=[user("Hi")])
        assert answer.choices[0].message.content
    for arguments, message in (
        (["--host", "0.0.0.0"], "RLVER_SERVE_TOKEN"), (["--user", "human"], "cannot be served"),
        (["--user", "none"], "nothing is left"), (["--policy", "scripted:hedge"], "only the folder of a model"),
    ):  # fmt: skip
        assert main(["serve", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_a_language_model_can_be_the_served_user() -> None:
    with FakeServer() as model, serving("--user", f"openai:fake@{model.url}", "--language", "zh") as address:
        opening = chat(address, [user("你好")])
        messages = [
            user("你好"),
            {"role": "assistant", "content": opening.choices[0].message.content},
            user("我在听。"),
        ]
        assert chat(address, messages).rlver["turn"] == 1
        model.faults, model.share = ["no_json"], 1.0
        with pytest.raises(openai.InternalServerError, match="could not be used"):
            chat(address, [user("在吗")])


def test_a_policy_folder_is_a_chat_model(policy_folder: Path) -> None:
    (policy_folder / "rlver.json").write_text('{"language": "en", "max_tokens": 24}', encoding="utf-8")
    with serving("--user", "none", "--policy", str(policy_folder)) as address:

        def ask(**more: Any) -> Any:
            messages: list[Any] = [user("The kettle broke."), {"role": "assistant", "content": "Why?"}, user("I fell.")]
            return client(address).chat.completions.create(model="mine", messages=messages, seed=4, **more)

        whole = ask()
        assert whole.usage.completion_tokens <= 24 and whole.choices[0].finish_reason in ("stop", "length")
        assert ask().choices[0].message.content == whole.choices[0].message.content
        chunks = list(ask(stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
        assert len(chunks) > 3 and chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert ask(max_tokens=1).usage.completion_tokens == 1
        with pytest.raises(openai.BadRequestError, match="alternate"):
            client(address).chat.completions.create(model="mine", messages=[user("a"), user("b")])


def test_served_replies_are_those_of_the_sampler(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    from rlver.policies.local import LocalPolicy
    from rlver.policies.prompts import system_prompt
    from rlver.serve.completions import Generator

    policy = LocalPolicy(model, tokenizer, "en", max_tokens=16, temperature=0)
    dialogue = Dialogue(benchmark_profiles("en")[0], get_preset("sage"))
    dialogue.begin("The kettle broke on Monday.")
    raw = run(policy.reply(dialogue, 1)).raw
    generator = Generator(policy, system_prompt("en", False))
    pieces = list(generator.stream(generator.prompt([("user", dialogue.opening)]), 16, 0, 1))
    assert "".join(piece.text for piece in pieces) == raw


def test_thoughts_are_separated_from_replies() -> None:
    text = "<think>They want to be heard.</think>I hear you."
    splitter, deltas = DeltaSplitter(think=True), []
    for end in range(1, len(text) + 1):
        deltas += list(splitter.split(text[:end], end, "stop" if end == len(text) else None))
    assert "".join(p.text for p in deltas if p.thinking) == "They want to be heard."
    assert "".join(p.text for p in deltas if not p.thinking) == "I hear you."
    assert deltas[-1].finish == "stop"
