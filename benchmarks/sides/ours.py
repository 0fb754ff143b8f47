"""Our side: a step of our trainer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from rlver.core.dialogue import Dialogue
from rlver.train.config import TrainConfig
from rlver.train.trainer import Trainer
from sides.floor import Floor
from sides.work import Counts, Patient, Setting, make_model, make_tokenizer, patient, profiles_of


class Ours:
    """Our trainer. It makes a model unless one is given; `extra` are further settings of its configuration."""

    def __init__(self, setting: Setting, model: Qwen2ForCausalLM | None = None, **extra: Any) -> None:
        self.setting = setting
        length = len(Floor.plan(setting).ids)
        config = TrainConfig(
            preset=patient(setting),
            credit="terminal",
            batch=setting.dialogues,
            group=setting.group,
            minibatches=1,
            micro_tokens=setting.micro * length,
            max_tokens=setting.tokens,
            temperature=1.0,
            lr=setting.lr,
            warmup=0,
            final_rate=1.0,
            kl=setting.kl,
            threads=setting.threads,
            **extra,
        )
        model = model or make_model(setting)
        user = Patient(setting.said)
        self.trainer = Trainer(config, model, make_tokenizer(), user, profiles_of(setting))
        self.dialogues: list[Dialogue] = []
        """The dialogues of the last step."""
        # The trainer shares out its cores in its own way; the other sides leave that to torch.
        self.threads = torch.get_num_threads()
        torch.set_num_threads(setting.threads)
        self.number = 0

    def step(self) -> None:
        """One step."""
        torch.set_num_threads(self.threads)
        _, self.dialogues = self.trainer.step(self.number)
        torch.set_num_threads(self.setting.threads)
        self.number += 1

    def count(self) -> Counts:
        """Counts of the last step."""
        records = [[turn.tokens for turn in dialogue.turns if turn.tokens] for dialogue in self.dialogues]
        sampled = sum(len(record.token_ids) for replies in records for record in replies)
        # The last prompt holds all earlier replies.
        passed = sum(len(replies[-1].prompt_ids) + len(replies[-1].token_ids) for replies in records)
        return Counts(sampled, sampled, passed)
