"""`rlver train`: train a policy on simulated users."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.options import DEVICE_HELP, JsonOption
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.train.config import Algorithm
from rlver.train.credit import Credit

COLLAPSED = 3
"""Exit code of a training that stopped because its policy had collapsed."""

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
        Algorithm | None, typer.Option(help="grpo, rloo, dr-grpo compare rollouts of a profile; ppo has a critic.")
    ] = None,
    credit: Annotated[
        Credit | None,
        typer.Option(
            help="Pay replies for the emotion at the end, for their own change, or for what followed from them."
        ),
    ] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Let the policy think before it speaks.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="Simulated user: embedded, vanilla, challenging, openai:MODEL@BASE_URL or any:PROVIDER/MODEL."
        ),
    ] = None,
    user_type: Annotated[
        UserType | None,
        typer.Option("--user-type", help="Vanilla users hint at what they need; challenging ones never do."),
    ] = None,
    language: Annotated[Language | None, typer.Option(help="Language of the talks.")] = None,
    preset: Annotated[str | None, typer.Option(help="Rules of the emotion: sage, release, paper.")] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="JSONL file of profiles, ours or official; default: generated from training stories."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random is drawn from this number.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=0, help="Evaluate on held-out users (not the benchmark's) each N steps and keep the best; 0: never."
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also show the run in wandb, trackio or mlflow (offline); give it again for several."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting as key=value, for example --set lr=5e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/train/TIME.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out from its last checkpoint; other --steps change the rates to come.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what the run needs: memory by part, and the longest dialogue.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a policy with GRPO or PPO on the emotions of simulated users.

    The run's folder holds its config, metrics.jsonl, TensorBoard events, sample dialogues, checkpoints and the
    trained policy in policy/. Ctrl-C saves; --resume goes on to the same numbers as if nothing had happened.

    With --eval-every, held-out users measure the policy while it learns, and best/ holds the best one. A policy that
    collapses (entropy gone, far from where it started, the same reply over and over) ends the run with exit code 3;
    policy/ is then the last sound one.

    Examples:

      rlver train --algo ppo --think --user challenging

      rlver train --policy my-model --set lr=1e-6 --set batch=32 --set max_tokens=512 --out runs/mine

      rlver train --steps 60 --eval-every 10 --track mlflow --set eval_n=100 --set keep_last=3

      rlver train --policy my-model --set lora=32 --set device_memory_gb=24 --set batch=32 --dry-run

      rlver train --out runs/mine --resume
    """
    from rlver.inference.model_folder import pick_device
    from rlver.train.config import load_config
    from rlver.train.runs.outcome import read_outcome
    from rlver.train.runs.participants import evaluation_profiles, training_profiles
    from rlver.train.runs.run_folder import check_folder, stored_config
    from rlver.train.runs.trackers import check_trackers

    if resume and out is None:
        raise RlverError("--resume needs --out: say which run to go on with.")
    folder = out or Path("runs/train") / datetime.now().strftime("%Y%m%d-%H%M%S")
    choices = {
        "policy": policy,
        "algo": algo,
        "credit": credit,
        "think": think,
        "user": user,
        "user_type": user_type,
        "language": language,
        "preset": preset,
        "profiles": str(profiles) if profiles else None,
        "steps": steps,
        "seed": seed,
        "device": device,
        "eval_every": eval_every,
        "trackers": track or None,
    }
    options = {name: value for name, value in choices.items() if value is not None}
    if resume and config is None:
        options = stored_config(folder) | options
    chosen = load_config(config, settings or [], options)
    # What is wrong with files, trackers and the device is told before minutes of pretraining.
    training_profiles(chosen)
    evaluation_profiles(chosen)
    check_trackers(chosen.trackers)
    if dry_run:
        from rlver.cli.plan import show_plan

        show_plan(chosen, as_json)
        return
    check_folder(folder, chosen, resume)
    pick_device(chosen.device, Path(chosen.policy))
    metrics = train_with_progress(chosen, folder, resume)
    trained = folder / "policy"
    outcome = read_outcome(folder)
    if as_json:
        told = {"run": str(folder), "policy": str(trained), "metrics": metrics, "outcome": outcome.model_dump()}
        typer.echo(json.dumps(told, indent=2))
        return
    if outcome.verdict:
        typer.echo(outcome.verdict)
    for tracker, count in outcome.tracker_failures.items():
        typer.echo(f"The tracker {tracker} did not take {count} records.", err=True)
    typer.echo(
        f"Trained policy: {trained}\nMetrics: {folder / 'metrics.jsonl'}\n"
        f"Before and after: rlver bench --policy {folder / 'base'} --policy {trained}"
        f" --language {chosen.language} --user {chosen.user_type}\n"
        f"Curves: tensorboard --logdir {folder / 'tensorboard'}\n"
        f"A folder to share: rlver export {folder} --out {folder / 'export'}"
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
        typer.Exit: stopped by Ctrl-C (exit code 130) or by a collapse (3), with the state saved.
    """
    from rlver.cli.progress import Steps
    from rlver.train.runs.collapse import Collapsed
    from rlver.train.runs.interrupt import Interrupted
    from rlver.train.runs.training_run import run
    from rlver.train.runs.validation import score_of

    if base is None:
        base = folder / "base" if resume and (folder / "base").is_dir() else base_of(config)
    last: dict[str, float] = {}
    done = failed = 0
    shown = held_out = ""

    def show(step: int, metrics: dict[str, float]) -> None:
        nonlocal done, failed, shown, held_out
        last.update(metrics)
        if score := score_of(metrics, config.user_type):
            held_out = f", held-out {score}"
        done = step
        kl = f", kl {metrics['kl']:.2f}" if "kl" in metrics else ""
        failed += round(metrics.get("failed", 0))
        missing = f", {failed} left out" if failed else ""
        fit = f", fit {metrics['fit']:.2f}" if "fit" in metrics else ""
        shown = f"emotion {100 * metrics['reward']:.0f}{fit}{kl}{held_out}{missing}"
        bar.update(step, config.steps, shown)

    def note(text: str) -> None:
        if done:
            bar.update(done, config.steps, f"{shown}; {text}")

    try:
        with Steps(f"Training ({config.algo}, {config.credit} credit)") as bar:
            run(config, base, folder, resume=resume, on_step=show, on_note=note)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(130) from None
    except Collapsed as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(COLLAPSED) from None
    finally:
        if failed:
            typer.echo(
                f"{failed} dialogues were left out, for they or others of their groups failed; why: "
                f"{folder / 'failures.jsonl'}",
                err=True,
            )
    return last
