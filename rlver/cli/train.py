"""`rlver train`: train a policy on the emotions of simulated users."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from rlver.cli.options import DEVICE_HELP, PRESET_HELP, USER_HELP, USER_TYPE_HELP, USERS, JsonOption
from rlver.core.emotion import PRESETS
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.core.profile import Language
from rlver.train.config import Algorithm, TrainConfig
from rlver.train.credit import Credit

COLLAPSED = 3
"""Exit code of a training run that stopped because its policy had collapsed."""


def _option(setting: str, text: str) -> str:
    """The help of an option that is None where it is not given, with the default of its setting."""
    return f"{text}  [default: {TrainConfig.model_fields[setting].default}]"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("train", rich_help_panel="Train")(train)


def train(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings. Options override it.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help=_option(
                "policy",
                "What to train: the folder of a Hugging Face model, or tiny, a small model that is pretrained first.",
            ),
        ),
    ] = None,
    algo: Annotated[
        Algorithm | None,
        typer.Option(
            help=_option(
                "algo",
                "How advantages are estimated. grpo, rloo and dr-grpo compare the rollouts of a "
                "profile; reinforce++ compares all rollouts of a step; ppo (or gae) trains a critic.",
            )
        ),
    ] = None,
    credit: Annotated[
        Credit | None,
        typer.Option(
            help=_option(
                "credit",
                "What a reply is rewarded for. terminal: the emotion at the end of the dialogue; "
                "change: the change of emotion that the reply causes; return: this change and, discounted, all later "
                "ones; turn: the same, compared turn by turn.",
            )
        ),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Let the policy think before it replies.  [default: no-think]"),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=_option("user", USER_HELP), autocompletion=lambda: USERS),
    ] = None,
    user_type: Annotated[UserType | None, typer.Option(help=_option("user_type", USER_TYPE_HELP))] = None,
    language: Annotated[Language | None, typer.Option(help=_option("language", "Language of the dialogues."))] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=_option("preset", PRESET_HELP), autocompletion=lambda: list(PRESETS)),
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of profiles, in our format or the official one.  [default: generated from the training "
            "stories]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help=_option("steps", "Number of training steps."))] = None,
    seed: Annotated[int | None, typer.Option(min=0, help=_option("seed", "Seed of everything random."))] = None,
    device: Annotated[str | None, typer.Option(help=_option("device", DEVICE_HELP))] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help=_option(
                "eval_every",
                "Evaluate the policy every N steps with users of held-out stories (not those of "
                "the benchmark), and keep the best policy. 0: never.",
            ),
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log the run to wandb, trackio or mlflow (offline). Repeat the option for several.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, for example --set lr=5e-4. Repeat it for several."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/train/TIME]")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out from its last checkpoint. Another number of --steps changes the learning "
            "rates of the steps to come.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what the run would need: memory by part, and the longest dialogue."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a policy with GRPO or PPO on the emotions of simulated users.

    The folder of the run holds its configuration, metrics.jsonl, TensorBoard events, sample dialogues, checkpoints,
    and the trained policy in policy/. Ctrl-C saves the state. --resume continues to the same numbers as an
    uninterrupted run.

    With --eval-every, held-out users measure the policy during training, and best/ holds the best policy. A policy
    that collapses (no entropy, far from the reference, the same reply again and again) ends the run with exit code 3;
    policy/ then holds the last sound policy.

    Examples:

      rlver train --algo ppo --think --user-type challenging

      rlver train --policy my-model --set lr=1e-6 --set batch=32 --set max_tokens=512 --out runs/mine

      rlver train --steps 60 --eval-every 10 --track mlflow --set eval_n=100 --set keep_last=3

      rlver train --policy my-model --set lora=32 --set device_memory_gb=24 --set batch=32 --dry-run

      rlver train --out runs/mine --resume
    """
    from rlver.train.config import load_config
    from rlver.train.runs.checks import check_inputs, check_start
    from rlver.train.runs.outcome import read_outcome
    from rlver.train.runs.run_folder import stored_config

    if resume and out is None:
        raise RlverError("--resume needs --out, which names the run to continue.")
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
    if dry_run:
        from rlver.cli.plan import show_plan

        check_inputs(chosen)
        show_plan(chosen, as_json)
        return
    check_start(chosen, folder, resume)
    metrics = train_with_progress(chosen, folder, resume)
    trained = folder / "policy"
    outcome = read_outcome(folder)
    if as_json:
        result = {"run": str(folder), "policy": str(trained), "metrics": metrics, "outcome": outcome.model_dump()}
        typer.echo(json.dumps(result, indent=2))
        return
    if outcome.verdict:
        typer.echo(outcome.verdict)
    for tracker, count in outcome.tracker_failures.items():
        typer.echo(f"The tracker {tracker} lost {count} records.", err=True)
    typer.echo(
        f"Trained policy: {trained}\nMetrics: {folder / 'metrics.jsonl'}\n"
        f"Compare it with its base: rlver bench --policy {folder / 'base'} --policy {trained}"
        f" --language {chosen.language} --user-type {chosen.user_type}\n"
        f"Plot the curves: tensorboard --logdir {folder / 'tensorboard'}\n"
        f"Export it: rlver export {folder} --out {folder / 'export'}"
    )


def base_of(config: TrainConfig) -> Path:
    """The folder of the policy that a run starts from. The tiny policy is pretrained first if it is not there yet."""
    if config.policy != "tiny":
        return Path(config.policy)
    from rlver.cli.progress import Steps
    from rlver.tiny import base_policy, tiny_folder

    folder = tiny_folder(config.language, config.think, config.seed)
    if not folder.is_dir():
        typer.echo(
            f"The tiny policy is pretrained first, which takes some minutes. It is kept in {folder} for later runs "
            "with the same language and seed.",
            err=True,
        )
    with Steps("Pretraining the tiny policy") as bar:
        return base_policy(
            config.language,
            config.think,
            config.seed,
            on_step=lambda step, steps, loss: bar.update(step + 1, steps, f"loss {loss:.2f}"),
        )


def train_with_progress(config: TrainConfig, folder: Path, resume: bool, base: Path | None = None) -> dict[str, float]:
    """Run the training, show its progress, and return the metrics of the last step.

    Args:
        base: folder of the policy to start from; None takes what `config.policy` names.

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
    failed = 0
    shown = held_out = ""

    def show(step: int, metrics: dict[str, float]) -> None:
        nonlocal failed, shown, held_out
        last.update(metrics)
        if score := score_of(metrics, config.user_type):
            held_out = f", held-out {score}"
        kl = f", kl {metrics['kl']:.2f}" if "kl" in metrics else ""
        failed += round(metrics.get("failed", 0))
        missing = f", {failed} left out" if failed else ""
        fit = f", fit {metrics['fit']:.2f}" if "fit" in metrics else ""
        shown = f"emotion {100 * metrics['reward']:.0f}{fit}{kl}{held_out}{missing}"
        bar.update(step, config.steps, shown)

    def note(text: str) -> None:
        bar.note(f"{shown}; {text}")

    try:
        with Steps(f"Training ({config.algo}, {config.credit} credit)", each=True) as bar:
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
                f"{failed} dialogues were left out because they or others of their groups failed; the reasons are in "
                f"{folder / 'failures.jsonl'}.",
                err=True,
            )
    return last
