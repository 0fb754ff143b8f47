"""`rlver train --dry-run`: what a run needs, before anything long starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rlver.cli.console import show
from rlver.core.errors import RlverError
from rlver.text.table import Column, Table

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from rlver.train.config import TrainConfig
    from rlver.train.plan.memory import MemoryPlan

_WHEN = {"always": "always", "sampling": "while sampling", "evaluation": "before updates", "update": "in updates"}


def show_plan(config: TrainConfig, as_json: bool) -> None:
    """Print the memory plan of a run and its longest dialogue; no weights are loaded, nothing is written.

    Raises:
        RlverError: the policy's config or tokenizer cannot be read.
    """
    import torch

    from rlver.inference.model_folder import base_folder, pick_device
    from rlver.train.plan.longest_dialogue import longest_dialogue
    from rlver.train.plan.memory import plan_memory
    from rlver.train.runs.participants import training_profiles
    from rlver.users.embedded.user import EmbeddedUser

    shape, tokenizer = _tiny(config) if config.policy == "tiny" else _read(Path(config.policy))
    if config.device_memory_gb is not None and config.device == "auto":
        device = torch.device("cuda")  # which need not be here
    else:
        device = pick_device(config.device, base_folder(Path(config.policy)) if config.policy != "tiny" else Path())
    # Always the embedded user: planning calls no endpoint. It cannot play every profile of a user behind an endpoint.
    user, embedded = EmbeddedUser(config.language, config.user_type, "train"), config.user == "embedded"
    longest = longest_dialogue(config, tokenizer, user, training_profiles(config) if embedded else None)
    plan = plan_memory(config, shape, longest, device)
    if as_json:
        typer.echo(json.dumps(plan.record(), indent=2))
        return
    _print(config, plan)
    if not embedded:
        typer.echo(f"Caution: {config.user} may speak longer than the embedded user, whose utterances were counted.")
    made_for = getattr(shape.get_text_config(), "max_position_embeddings", None)
    if made_for and plan.longest.sample > made_for:
        typer.echo(f"Caution: that is longer than the {made_for} positions that the model was made for.")


def _print(config: TrainConfig, plan: MemoryPlan) -> None:
    title = f"Memory ({plan.dtype} on {plan.device})"
    table = Table(Column("part", "name"), Column("where", "name"), Column("when", "name"), Column("GB"), title=title)
    for part in plan.parts:
        place = plan.device if part.on_device else "cpu memory"
        table.add(part.name, place, _WHEN[part.when], f"{part.bytes / 1e9:.3f}")
    show(table)
    length = plan.longest
    verdict = {None: "", True: f", which fits in {(plan.capacity or 0) / 1e9:.1f} GB"}.get(
        plan.fits, f", MORE than the {(plan.capacity or 0) / 1e9:.1f} GB available"
    )
    typer.echo(f"At most {plan.peak / 1e9:.2f} GB at one time on {plan.device}{verdict}.")
    if plan.host:
        typer.echo(f"{plan.host / 1e9:.2f} GB more in the CPU's memory.")
    typer.echo(
        f"Longest dialogue: {length.sample} tokens, {length.trained} of them trained: system prompt and first "
        f"utterance {length.opening}, {length.replies} replies of {length.max_tokens}, later utterances of "
        f"{length.utterance} ({length.heard} were measured). {config.batch} dialogues a step."
    )
    if plan.capacity is None and plan.device == "cpu":
        typer.echo("To plan for a GPU that is not here: --set device_memory_gb=24.")
    if plan.advice:
        settings = " ".join(f"--set {setting}" for setting in plan.advice)
        begin = "Would fit" if plan.advised_peak <= (plan.capacity or 0) else "Still not enough, but less"
        typer.echo(f"{begin}, at {plan.advised_peak / 1e9:.2f} GB: {settings}")
    elif plan.fits is False:
        typer.echo("No setting would make it fit: take a smaller model or fewer max_tokens.")


def _read(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoTokenizer

    from rlver.inference.model_folder import base_folder

    base = base_folder(folder)
    try:
        shape = AutoConfig.from_pretrained(base, local_files_only=True)
        return shape, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds; all mean that the folder is no usable model
        raise RlverError(f"{folder}: its config or tokenizer cannot be read ({str(error).splitlines()[0]}).") from error


def _tiny(config: TrainConfig) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The shape of the tiny policy, and a tokenizer like its own, trained on a small corpus. Nothing is pretrained."""
    from rlver.tiny.corpus import write_corpus
    from rlver.tiny.model import build_model
    from rlver.tiny.pretrain import PretrainConfig
    from rlver.tiny.tokenizer import train_tokenizer

    dialogues = [dialogue for dialogue, _ in write_corpus(config.language, config.think, 60, config.seed)]
    tokenizer = train_tokenizer([message.content for dialogue in dialogues for message in dialogue.messages()])
    sizes = PretrainConfig()
    model = build_model(tokenizer, 0, sizes.hidden, sizes.layers, sizes.heads, sizes.head_size, sizes.feedforward)
    return model.config, tokenizer
