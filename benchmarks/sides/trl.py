"""TRL's side: a `GRPOTrainer` whose `rollout_func` plays the same dialogues with `generate`."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sides.generate import play_with_generate
from sides.work import Counts, Setting, make_model, make_tokenizer, profiles_of


@dataclass
class Rollout:
    """A `rollout_func` for TRL. The log-probabilities of sampling are left out: without vLLM, TRL does not use them."""

    setting: Setting
    keep: bool = True
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    seconds: float = 0.0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """As TRL calls it, with one prompt per dialogue: the number of its profile."""
        began = time.perf_counter()
        profiles = profiles_of(self.setting)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        model.eval()
        played = play_with_generate(model, self.setting, [profiles[int(prompt)] for prompt in prompts], self.keep)
        model.train(training)
        sampled = sum(map(sum, played.masks))
        longest = max(map(len, played.prompts)) + max(map(len, played.completions))
        self.counts = Counts(sampled, sampled, longest * len(prompts))
        self.seconds = time.perf_counter() - began
        return {
            "prompt_ids": played.prompts,
            "completion_ids": played.completions,
            "logprobs": None,
            "env_mask": played.masks,
            "earned": [dialogue.reward for dialogue in played.dialogues],
        }


def trl_trainer(
    setting: Setting, rollout: Rollout, steps: int, folder: Path, between: Callable[[float, float], None]
) -> Any:
    """A GRPOTrainer for the same task; `between` is called after each step with its wall and processor seconds."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    from trl import GRPOConfig, GRPOTrainer

    set_verbosity_error()
    disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            between(time.perf_counter() - self.wall, time.process_time() - self.cpu)

    # TRL loads its reference model from the folder that the model came from.
    make_model(setting).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=setting.dialogues // setting.micro,
        num_generations=setting.group,
        num_iterations=1,
        max_completion_length=setting.turns * (setting.tokens + setting.said + 16),
        max_steps=steps,
        beta=setting.kl,
        loss_type="grpo",
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        temperature=1.0,
        # What TRL does by default for large models on GPUs, and would slow a small one on a CPU, is off.
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=lambda earned, **_: earned,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(setting.dialogues // setting.group)]}),
        processing_class=make_tokenizer(),
        rollout_func=rollout,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
