"""Dialogues played with `generate`, as most code for `transformers` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from rlver.core.dialogue import Dialogue
from rlver.core.profile import Profile
from rlver.rollout import run
from sides.work import Patient, Setting, make_chat, patient


class Played(NamedTuple):
    """Dialogues that `generate` has played: ids of each, and the dialogues themselves."""

    prompts: list[list[int]]
    completions: list[list[int]]
    masks: list[list[int]]
    """1 for each token of a completion that the model sampled, 0 for those of the user and of the template."""
    dialogues: list[Dialogue]


def play_with_generate(model: Qwen2ForCausalLM, setting: Setting, profiles: Sequence[Profile], keep: bool) -> Played:
    """Play dialogues with one call of `generate` per turn for all of them.

    With `keep`, the cache is kept from turn to turn, so that `generate` encodes only new tokens. Otherwise it encodes
    the whole context again. The simulated user is that of our rollout.
    """
    return run(_play(model, setting, profiles, keep))


async def _play(model: Qwen2ForCausalLM, setting: Setting, profiles: Sequence[Profile], keep: bool) -> Played:
    chat, user = make_chat(), Patient(setting.said)
    dialogues = [Dialogue(profile, patient(setting)) for profile in profiles]
    for dialogue in dialogues:
        dialogue.begin(await user.open(dialogue, 0))
    prompts = [chat.opening(dialogue.opening) for dialogue in dialogues]
    completions: list[list[int]] = [[] for _ in dialogues]
    masks: list[list[int]] = [[] for _ in dialogues]
    past = DynamicCache(config=model.config) if keep else None
    for turn in range(setting.turns):
        ids = torch.tensor([p + c for p, c in zip(prompts, completions, strict=True)], device=model.device)
        # Nothing is cut from the distribution, and nothing but the tokens is asked for.
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=past,
            max_new_tokens=setting.tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            eos_token_id=chat.stop,
            pad_token_id=chat.tokenizer.pad_token_id,
        )[:, ids.shape[1] :].tolist()
        for i, (dialogue, new) in enumerate(zip(dialogues, out, strict=True)):
            completions[i] += new
            masks[i] += [1] * len(new)
            if dialogue.reply(chat.decode(new)):
                dialogue.react(await user.react(dialogue, 0))
            if turn + 1 < setting.turns:
                chunk = [chat.stop, *chat.turn(dialogue.messages()[-1].content)]
                completions[i] += chunk
                masks[i] += [0] * len(chunk)
    return Played(prompts, completions, masks, dialogues)
