"""Measures how much time `rlver bench` adds to the time that the endpoints take.

A server on loopback answers every call after 200 ms. 100 dialogues of 9 replies, with three calls per turn (reply,
verdict, speech), run at once. For comparison, a few dialogues run one call after another, as in the published
evaluation script. Then 1,000 dialogues show whether memory grows.

The wall time is compared with the chain of calls of one dialogue: with the nominal one (calls x latency), for which
there is a target, and with the longest one that the server measured. The server measures each call from the complete
request to the answer, including its own delays.

    python benchmarks/remote_speed.py [--dialogues 100] [--latency 0.2] [--long 1000] [--spacing 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rlver.core.emotion import get_preset
from rlver.core.errors import RlverError
from rlver.evaluation.benchmark import Pace, list_jobs, run_to_log
from rlver.evaluation.log import LoggedDialogue, RunConfig, RunLog
from rlver.llm import LLM, Limits, client, parse_endpoint
from rlver.policies.remote import RemotePolicy
from rlver.stories import benchmark_profiles, generate
from rlver.users.llm import LlmUser

# With this preset no user leaves early, so every dialogue has nine replies.
PATIENT = get_preset("sage").model_copy(update={"name": "patient", "fails_below": -1.0, "ends_at_success": False})
CALLS = 3
REPLIES = PATIENT.replies
SERVER = Path(__file__).parent.parent / "tests" / "fake_server.py"
TARGET_WALL, TARGET_CPU = 1.15, 3.0


class TimedLLM(LLM):
    """A client that adds up the server's time for each task, which plays one dialogue if all run at once."""

    chains: Counter[object]

    async def _post_chat(self, request: dict[str, Any]) -> Any:
        answer = await super()._post_chat(request)
        self.chains[asyncio.current_task()] += answer["took"]
        return answer


def measure(url: str, count: int, workers: int) -> dict[str, Any]:
    """Play `count` dialogues, `workers` at a time, and return the time and memory that they took."""
    llm = TimedLLM(parse_endpoint(f"openai:fake@{url}"), Limits(concurrency=workers))
    llm.chains = Counter()
    policy, user = RemotePolicy(llm, "en"), LlmUser(llm, "en")
    profiles = benchmark_profiles("en") if count <= 100 else generate("en", "train", count)
    jobs = list_jobs(profiles[:count], 1, 0)
    memory: list[int] = []

    def watch(dialogue: LoggedDialogue) -> None:
        if dialogue.transcript.error:
            raise RlverError(dialogue.transcript.error)
        memory.append(resident())

    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            policy=policy.spec, prompt="", think=False, temperature=None, max_tokens=None, user=user.identity,
            preset="patient", language="en", seed=0,
        )  # fmt: skip
        with RunLog(Path(folder) / "log.jsonl", config) as log:
            start, cpu = time.perf_counter(), time.process_time()
            run_to_log(jobs, policy, user, PATIENT, Pace(workers), log, watch)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    quarter = max(1, count // 4)
    return {
        "dialogues": count,
        "at_once": workers,
        "calls": llm.tally.calls,
        "wall_s": wall,
        "longest_chain_s": max(llm.chains.values()),
        "cpu_ms_per_call": 1000 * cpu / llm.tally.calls,
        "memory_after_first_quarter_mb": memory[quarter - 1] / 2**20,
        "memory_at_the_end_mb": memory[-1] / 2**20,
    }


def resident() -> int:
    """Resident memory of this process in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--one-by-one", type=int, default=2, help="number of dialogues that run one call after another")
    parser.add_argument("--long", type=int, default=1000, help="number of dialogues of the memory test; 0 skips it")
    parser.add_argument("--spacing", type=float, help="seconds between two calls, in place of the client's own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.spacing is not None:
        client.SPACING = options.spacing
    port = free_port()
    server = subprocess.Popen([sys.executable, SERVER, "--port", str(port), "--latency", str(options.latency)])
    url = f"http://127.0.0.1:{port}/v1"
    try:
        time.sleep(2)
        measure(url, 2, 2)  # warms up imports and connections
        results = {"together": measure(url, options.dialogues, options.dialogues)}
        results["one_by_one"] = measure(url, options.one_by_one, 1)
        if options.long:
            results["long"] = measure(url, options.long, options.dialogues)
    finally:
        server.terminate()
    chain = REPLIES * CALLS * options.latency
    # The first utterance is one more call: the built-in profiles leave it to the model.
    chain += options.latency
    together, alone = results["together"], results["one_by_one"]
    longest, wall = together["longest_chain_s"], together["wall_s"]
    ratio = wall / chain
    each = alone["wall_s"] / options.one_by_one
    count, calls = options.dialogues, together["calls"]
    print(f"{count} dialogues x {REPLIES} replies, {calls} calls of {1000 * options.latency:.0f} ms")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"wall {wall:.2f} s = {ratio:.3f} x one dialogue's chain ({chain:.2f} s); target {TARGET_WALL}")
    print(f"longest chain as the server measured it: {longest:.2f} s; wall = {wall / longest:.3f} x that")
    print(f"client CPU {together['cpu_ms_per_call']:.2f} ms per call; target {TARGET_CPU}")
    print(
        f"one call after another: {each:.2f} s per dialogue (measured on {options.one_by_one}), {each * count:.0f} s "
        f"for all {count}, {each * count / wall:.0f} times as long"
    )
    if "long" in results:
        long = results["long"]
        early, late = long["memory_after_first_quarter_mb"], long["memory_at_the_end_mb"]
        print(
            f"{options.long} dialogues: {early:.1f} MB after a quarter, {late:.1f} MB at the end; "
            f"{long['wall_s']:.0f} s, {long['cpu_ms_per_call']:.2f} ms CPU per call"
        )
    if options.json:
        options.json.write_text(json.dumps(results | {"chain_s": chain, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
