"""`rlver train --dry-run`: the memory that a run needs and its longest dialogue, before the run starts."""

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
    """Print the memory plan of a run and its longest dialogue. No weights are loaded, and nothing is written.

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
        device = torch.device("cuda")  # this machine need not have one
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
        typer.echo(
            f"Caution: the utterances of {config.user} may be longer than those of the embedded user, which were "
            "counted."
        )
    made_for = getattr(shape.get_text_config(), "max_position_embeddings", None)
    if made_for and plan.longest.sample > made_for:
        typer.echo(f"Caution: the longest dialogue exceeds the {made_for} positions that the model was trained for.")


def _print(config: TrainConfig, plan: MemoryPlan) -> None:
    title = f"Memory ({plan.dtype} on {plan.device})"
    table = Table(Column("part", "name"), Column("where", "name"), Column("when", "name"), Column("GB"), title=title)
    for part in plan.parts:
        place = plan.device if part.on_device else "cpu memory"
        table.add(part.name, place, _WHEN[part.when], f"{part.bytes / 1e9:.3f}")
    show(table)
    length = plan.longest
    capacity = f"{(plan.capacity or 0) / 1e9:.1f} GB"
    verdict = {None: "", True: f", which fits into {capacity}"}.get(plan.fits, f", MORE than its {capacity}")
    typer.echo(f"Peak memory on {plan.device}: {plan.peak / 1e9:.2f} GB{verdict}.")
    if plan.host:
        typer.echo(f"In the memory of the CPU: {plan.host / 1e9:.2f} GB more.")
    typer.echo(
        f"Longest dialogue: {length.sample} tokens ({length.opening} in the system prompt and the first utterance, "
        f"{length.max_tokens} in each of {length.replies} replies, {length.utterance} in each later utterance, the "
        f"longest of {length.heard} that were measured). {length.trained} of these tokens are "
        f"trained. A step has {config.batch} dialogues."
    )
    if plan.capacity is None and plan.device == "cpu":
        typer.echo("To plan for a GPU that this machine does not have: --set device_memory_gb=24.")
    if plan.advice:
        settings = " ".join(f"--set {setting}" for setting in plan.advice)
        fits = plan.advised_peak <= (plan.capacity or 0)
        begin = "These settings make it fit" if fits else "These settings help, but not enough"
        typer.echo(f"{begin} ({plan.advised_peak / 1e9:.2f} GB): {settings}")
    elif plan.fits is False:
        typer.echo("No setting makes it fit. Use a smaller model or fewer max_tokens.")


def _read(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoTokenizer

    from rlver.inference.model_folder import base_folder

    base = base_folder(folder)
    try:
        shape = AutoConfig.from_pretrained(base, local_files_only=True)
        return shape, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds; each means that the folder cannot be used
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
