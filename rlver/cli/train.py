"""`rlver train`: train a policy on simulated users."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlver.agents.base import UserType
from rlver.cli.options import JsonOption
from rlver.core.errors import RlverError
from rlver.core.profile import Language

if TYPE_CHECKING:
    from rlver.train.config import TrainConfig

BASES = Path("runs/base")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("train")(train)


def train(
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings; options win over it.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="What to train: tiny (made on the spot), or a folder with a Hugging Face model.")
    ] = None,
    algo: Annotated[
        Literal["grpo", "ppo"] | None, typer.Option(help="GRPO compares rollouts; PPO has a critic.")
    ] = None,
    credit: Annotated[
        Literal["turn", "terminal"] | None,
        typer.Option(help="Pay every reply for the change it caused, or only the final emotion."),
    ] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Let the policy think before it speaks.")
    ] = None,
    user: Annotated[
        UserType | None, typer.Option(help="Type of user to train with: they hint at their need, or do not.")
    ] = None,
    language: Annotated[Language | None, typer.Option(help="Language of the talks.")] = None,
    preset: Annotated[str | None, typer.Option(help="Rules of the emotion: sage, release, paper.")] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="JSONL file of profiles, ours or official; default: generated from training stories."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random is drawn from this number.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting as key=value, for example --set lr=5e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/train/<time>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what the run needs: memory by part, and the longest dialogue.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a policy with GRPO or PPO on the emotions of simulated users.

    The run's folder holds its config, metrics.jsonl, TensorBoard events, sample dialogues, checkpoints and the
    trained policy. Ctrl-C saves; --resume goes on to the same numbers as if nothing had happened.

    Examples:

      rlver train --algo ppo --think --user challenging

      rlver train --policy my-model --set lr=1e-6 --set batch=32 --set max_tokens=512 --out runs/mine

      rlver train --policy my-model --set lora=32 --set device_memory_gb=24 --set batch=32 --dry-run

      rlver train --out runs/mine --resume
    """
    from rlver.train.config import load_config
    from rlver.train.runs.run import profiles_of, stored_config

    if resume and out is None:
        raise RlverError("--resume needs --out: say which run to go on with.")
    folder = out or Path("runs/train") / datetime.now().strftime("%Y%m%d-%H%M%S")
    options = {
        "policy": policy,
        "algo": algo,
        "credit": credit,
        "think": think,
        "user": user,
        "language": language,
        "preset": preset,
        "profiles": str(profiles) if profiles else None,
        "steps": steps,
        "seed": seed,
    }
    if resume and config is None and (folder / "config.json").is_file():
        given = {key: value for key, value in options.items() if value is not None}
        options = stored_config(folder) | given
    chosen = load_config(config, settings or [], options)
    profiles_of(chosen)  # a broken file is told before minutes of pretraining
    if dry_run:
        from rlver.cli.plan import show_plan

        show_plan(chosen, as_json)
        return
    metrics = train_with_progress(chosen, folder, resume)
    trained = folder / "policy"
    if as_json:
        typer.echo(json.dumps({"run": str(folder), "policy": str(trained), "metrics": metrics}, indent=2))
        return
    typer.echo(
        f"Trained policy: {trained}\nMetrics: {folder / 'metrics.jsonl'}\n"
        f"Before and after: rlver bench --policy {folder / 'base'} --policy {trained}"
        f" --language {chosen.language} --user {chosen.user}\n"
        f"Curves: tensorboard --logdir {folder / 'tensorboard'}"
    )


def base_of(config: TrainConfig) -> Path:
    """The folder of the policy that a run starts from; the tiny one is pretrained, with a progress bar, if need be."""
    if config.policy != "tiny":
        return Path(config.policy)
    from rlver.cli.progress import Steps
    from rlver.tiny import base_policy

    with Steps("Pretraining the tiny policy") as bar:
        return base_policy(
            config.language,
            config.think,
            config.seed,
            BASES,
            lambda step, steps, loss: bar.update(step + 1, steps, f"loss {loss:.2f}"),
        )


def train_with_progress(config: TrainConfig, folder: Path, resume: bool, base: Path | None = None) -> dict[str, float]:
    """Run the training with a progress bar and return the metrics of the last step.

    Args:
        base: folder of the policy to start from; by default what `config.policy` names.

    Raises:
        typer.Exit: stopped by Ctrl-C, with the state saved (exit code 130).
    """
    from rlver.cli.progress import Steps
    from rlver.train.runs.run import Interrupted, run

    if base is None:
        base = folder / "base" if resume and (folder / "base").is_dir() else base_of(config)
    last: dict[str, float] = {}

    def show(step: int, metrics: dict[str, float]) -> None:
        last.update(metrics)
        kl = f", kl {metrics['kl']:.2f}" if "kl" in metrics else ""
        bar.update(
            step,
            config.steps,
            f"emotion {100 * metrics['reward']:.0f}, fit {metrics['fit']:.2f}{kl}",
        )

    try:
        with Steps(f"Training ({config.algo}, {config.credit} credit)") as bar:
            run(config, base, folder, resume=resume, on_step=show)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(130) from None
    return last
