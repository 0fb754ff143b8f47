"""Measures how fast dialogues are sampled in this process: the engine against a bare loop, and against lockstep.

The bare loop is the least that sampling can cost: the model's own forward passes over a cache of fixed size, and the
most likely token, for replies of equal length. Lockstep is how batches are often played: all dialogues get a reply,
then all users react, and so on until the last dialogue of the batch ends. Models have random weights, and a reply ends
at every token with a probability of 1 in 20, so replies have very different lengths. The variants of a case run in turn
in one process, and the figures are medians. Ratios are those of processor time, which other processes hardly change, or
of wall time where users take time.

    python benchmarks/rollout_speed.py [--hidden 128] [--layers 2] [--dialogues 64] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import StaticCache

from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.core.emotion import get_preset
from rlver.core.profile import Profile
from rlver.core.seeds import derive
from rlver.inference.engines.base import Sampling
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.policies.local import LocalPolicy
from rlver.rollout import for_each, play, run
from rlver.stories.generate import generate
from rlver.tiny.model import build_model
from rlver.tiny.tokenizer import train_tokenizer

# With this preset no user leaves early, so every dialogue has six replies.
PATIENT = get_preset("sage").model_copy(
    update={"name": "patient", "fails_below": -1.0, "ends_at_success": False, "replies": 6}
)
PROMPT, REPLY = 200, 48
TARGET = 1.15


class User:
    """Tells one fact after the other, each after a delay. A user without a delay never waits."""

    identity = "benchmark"

    def __init__(self, delay: float = 0.0) -> None:
        """Take `delay` seconds for each utterance."""
        self.delay = delay

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """The first fact."""
        return Opening(await self._tell(dialogue), 0)

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """The next fact."""
        return Reaction(change=0, utterance=await self._tell(dialogue))

    async def _tell(self, dialogue: Dialogue) -> str:
        if self.delay:
            await asyncio.sleep(self.delay)
        facts = dialogue.profile.story.facts
        return facts[len(dialogue.turns) % len(facts)].say


def sampled(dialogues: Iterable[Dialogue]) -> int:
    """Number of tokens that were sampled in dialogues."""
    return sum(len(turn.tokens.token_ids) for dialogue in dialogues for turn in dialogue.turns if turn.tokens)


def refilled(policy: LocalPolicy, profiles: Sequence[Profile], user: User, slots: int) -> int:
    """Play as `rlver.rollout` does. Returns the number of sampled tokens."""
    return sampled(play(profiles, policy, user, PATIENT, seed=3, slots=slots))


def lockstep(policy: LocalPolicy, profiles: Sequence[Profile], user: User, slots: int) -> int:
    """Play batch after batch and round after round. Returns the number of sampled tokens."""

    async def batch(first: int) -> int:
        dialogues = {
            Dialogue(profile, PATIENT): derive(3, "policy", first + i)
            for i, profile in enumerate(profiles[first : first + slots])
        }
        openings = await asyncio.gather(*(user.open(dialogue, 0) for dialogue in dialogues))
        for dialogue, opening in zip(dialogues, openings, strict=True):
            dialogue.begin(opening)
        while active := [dialogue for dialogue in dialogues if dialogue.stop is None]:
            replies = await asyncio.gather(*(policy.reply(dialogue, dialogues[dialogue]) for dialogue in active))
            judged = [dialogue for dialogue, reply in zip(active, replies, strict=True) if dialogue.reply(reply)]
            reactions = await asyncio.gather(*(user.react(dialogue, 0) for dialogue in judged))
            for dialogue, reaction in zip(judged, reactions, strict=True):
                dialogue.react(reaction)
        return sampled(dialogues)

    return sum(run(batch(first)) for first in range(0, len(profiles), slots))


def engine_alone(model: Any, prompts: list[list[int]]) -> int:
    """Replies of equal length to prompts of equal length."""
    engine = BuiltInEngine(model)

    async def one(number: int) -> None:
        await engine.reply(engine.open(), prompts[number], number, Sampling(1.0, REPLY, frozenset()))

    run(for_each(range(len(prompts)), one))
    return len(prompts) * REPLY


@torch.inference_mode()
def bare_loop(model: Any, prompts: list[list[int]]) -> int:
    """The same tokens by nothing but the model's forward pass over its own static cache, and argmax."""
    cache = StaticCache(model.config, max_cache_len=PROMPT + REPLY)
    ids, at = torch.tensor(prompts), torch.arange(PROMPT)
    for _ in range(REPLY):
        hidden = model.model(input_ids=ids, position_ids=at[None], past_key_values=cache).last_hidden_state
        ids = model.lm_head(hidden[:, -1:])[:, 0].argmax(-1, keepdim=True)
        at = at[-1:] + 1
    return len(prompts) * REPLY


def compare(name: str, variants: dict[str, Callable[[], int]], repeats: int, wall: bool = False) -> dict[str, Any]:
    """Run variants in turn. The ratio is that of the first to the second, by processor time or by wall time."""
    measured: dict[str, list[tuple[float, float, int]]] = {variant: [] for variant in variants}
    for variant, once in [*variants.items()] * repeats:
        start, cpu = time.perf_counter(), time.process_time()
        tokens = once()
        measured[variant].append((time.perf_counter() - start, time.process_time() - cpu, tokens))
    medians = {variant: [median(column) for column in zip(*runs, strict=True)] for variant, runs in measured.items()}
    first, second = (figures[0 if wall else 1] for figures in medians.values())
    figures = (f"{v} {s:.2f} s ({cpu:.2f} s CPU, {n:,.0f} tokens)" for v, (s, cpu, n) in medians.items())
    print(f"{name}\n    {', '.join(figures)}; ratio {first / second:.2f}", flush=True)
    keys = ("seconds", "processor_seconds", "tokens")
    return {"case": name, "ratio": first / second} | {v: dict(zip(keys, f, strict=True)) for v, f in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dialogues", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, repeats = options.dialogues, options.repeats
    profiles = generate("en", "train", count, 1)
    tokenizer = train_tokenizer(
        [fact.say for profile in generate("en", "train", 200, 0) for fact in profile.story.facts]
    )
    model = build_model(tokenizer, 0, options.hidden, options.layers, 4, options.hidden // 4, 3 * options.hidden).eval()

    drawn = torch.randint(len(tokenizer), (count, PROMPT), generator=torch.Generator().manual_seed(0))
    prompts: list[list[int]] = drawn.tolist()

    def versus(name: str, user: User, slots: int, max_tokens: int) -> dict[str, Any]:
        def variant(how: Callable[..., int]) -> Callable[[], int]:
            return lambda: how(LocalPolicy(model, tokenizer, "en", max_tokens=max_tokens), profiles, user, slots)

        return compare(name, {"lockstep": variant(lockstep), "refilled": variant(refilled)}, repeats, user.delay > 0)

    alone = {"engine": lambda: engine_alone(model, prompts), "bare loop": lambda: bare_loop(model, prompts)}
    results = [
        compare(f"engine / bare loop (at most {TARGET})", alone, repeats),
        versus("all at once, replies of equal length", User(), count, 24),
    ]
    end = torch.zeros(len(tokenizer))
    end[tokenizer.eos_token_id] = math.log(len(tokenizer) / 20)
    model.lm_head.register_forward_hook(lambda module, given, logits: logits + end)
    results += [
        versus("all at once, replies of any length", User(), count, 100),
        versus(f"{count // 4} slots, replies of any length", User(), count // 4, 100),
        *(versus(f"all at once, users take {t:g} s", User(t), count, 100) for t in (0.05, 0.2)),
    ]
    if options.json:
        settings = {"hidden": options.hidden, "layers": options.layers, "dialogues": count, "repeats": repeats}
        options.json.write_text(json.dumps(settings | {"results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
