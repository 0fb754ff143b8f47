"""`rlver demo`: the whole loop on a laptop, from a poor policy to one that supports its users."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.cli.console import show
from rlver.cli.options import DeviceOption, LanguageOption, SeedOption, UserTypeOption
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType
from rlver.core.profile import Language

if TYPE_CHECKING:
    from rlver.core.emotion import Preset
    from rlver.core.transcript import Transcript
    from rlver.evaluation.results import PolicyResult

BASELINES = ("scripted:generic", "scripted:empathise", "scripted:praise", "scripted:hedge", "scripted:oracle")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo", rich_help_panel="Start here")(demo)


def demo(
    seed: SeedOption = 0,
    policy: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="What to start from: the folder of a Hugging Face model, or tiny, a small model that is pretrained "
            "first.",
        ),
    ] = "tiny",
    language: LanguageOption = "en",
    user_type: UserTypeOption = "vanilla",
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 24,
    n: Annotated[int, typer.Option(min=8, max=100, help="Benchmark dialogues of each policy.")] = 100,
    compare: Annotated[
        bool,
        typer.Option(
            "--terminal/--no-terminal", help="Also train with the terminal reward of the paper, for comparison."
        ),
    ] = True,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results. An earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Pretrain a tiny policy, train it on the emotions of simulated users, and benchmark it before and after.

    The users of the benchmark have stories, names and phrasings that do not occur in training, and one new topic.
    A second run with the terminal reward of the paper trains beside the first one.

    Examples:

      rlver demo

      rlver demo --language zh --seed 1 --out runs/demo-zh
    """
    from rlver.cli.train import base_of, train_with_progress
    from rlver.evaluation.plots import learning_curve
    from rlver.evaluation.report import intention_table, matrix_table, score_table, transcript_text
    from rlver.inference.model_folder import base_folder, pick_device
    from rlver.text.hanging import Hanging
    from rlver.train.config import load_config

    began = time.monotonic()
    if policy != "tiny":
        base_folder(Path(policy))
    pick_device(device, Path(policy))
    if out.resolve() in (Path(policy).resolve(), *Path(policy).resolve().parents):
        raise RlverError(f"{policy}: is inside {out}, which the demo replaces; choose another --out.")
    if out.exists():
        if not (out / "summary.json").is_file() and any(out.iterdir()) and not (out / "turn").is_dir():
            raise RlverError(f"{out}: holds something other than an earlier demo; choose another --out.")
        shutil.rmtree(out)
    options = {"seed": seed, "language": language, "user_type": user_type, "steps": steps, "device": device}
    config = load_config(None, [], {"policy": policy, **options})
    base = base_of(config)
    terminal = _start_terminal_run(base, options, out / "terminal") if compare else None
    try:
        train_with_progress(config, out / "turn", resume=False, base=base)
        if terminal is not None and terminal.wait() != 0:
            log = (out / "terminal.log").read_text(encoding="utf-8").strip().splitlines()
            raise RlverError(
                f"{out / 'terminal'}: the run with the terminal reward failed ({log[-1] if log else 'no output'})."
            )
    finally:
        if terminal is not None and terminal.poll() is None:
            terminal.terminate()

    results, dialogues = _benchmark(config.language, config.user_type, config.rules, seed, n, device, out)
    by_name = {result.policy: result for result in results}
    title = f"Benchmark: {n} held-out profiles, {config.user_type} users, preset {config.rules.name}, seed {seed}"
    show("", score_table(results, title), "", intention_table(results), "")
    for name in ("base", "trained"):
        show(matrix_table(by_name[name]), "")
    for number in (0, 1):
        for name in ("base", "trained"):
            show(f"--- {name} ---", Hanging(transcript_text(dialogues[name][number], config.rules.start), 10), "")
    curves = {"turn credit": out / "turn" / "metrics.jsonl"}
    if compare:
        curves["terminal reward"] = out / "terminal" / "metrics.jsonl"
    curve = learning_curve(curves, out / "learning_curve.png")
    summary = {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "preset": config.rules.name,
        "user_type": config.user_type,
        "language": config.language,
        "n": n,
        **{
            name.replace(",", "").replace(" ", "_"): _numbers(result)
            for name, result in by_name.items()
            if "scripted" not in name
        },
        "baselines": {name: result.summary.score for name, result in by_name.items() if "scripted" in name},
    }
    file = out / "summary.json"
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    typer.echo(
        f"Learning curve: {curve}\nTranscripts:    {out / 'transcripts'}\nSummary:        {file}\n"
        f"Trained policy: {out / 'turn' / 'policy'}  ({summary['seconds']:.0f} s in all)"
    )


def _start_terminal_run(base: Path, options: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """Train with the terminal reward in a process of its own: two runs of one thread are faster than one of two."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "rlver",
        "train",
        "--policy",
        str(base),
        "--credit",
        "terminal",
        "--out",
        str(folder),
    ]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _benchmark(
    language: Language, user_type: UserType, preset: Preset, seed: int, n: int, device: str, out: Path
) -> tuple[list[PolicyResult], dict[str, list[Transcript]]]:
    """Benchmark the base, trained and scripted policies. Returns the results, and the dialogues of each policy."""
    from rlver.cli.progress import Steps
    from rlver.evaluation.suite import Entry, Progress, Suite
    from rlver.policies.load import load_policy
    from rlver.stories import benchmark_profiles, generate
    from rlver.users.embedded.user import EmbeddedUser

    held_out = benchmark_profiles(language)[:n], EmbeddedUser(language, user_type, "heldout")
    as_in_training = generate(language, "train", n, seed), EmbeddedUser(language, user_type, "train")
    rows = [
        ("base", str(out / "turn" / "base"), held_out),
        ("trained", str(out / "turn" / "policy"), held_out),
        ("base, seen stories", str(out / "turn" / "base"), as_in_training),
        ("trained, seen stories", str(out / "turn" / "policy"), as_in_training),
        *((name, name, held_out) for name in BASELINES),
    ]
    if (out / "terminal" / "policy").is_dir():
        rows.insert(2, ("terminal reward", str(out / "terminal" / "policy"), held_out))
    entries = [
        Entry(load_policy(spec, language, device=device), simulated_user, profiles, label)
        for label, spec, (profiles, simulated_user) in rows
    ]
    labels = [entry.label for entry in entries]
    with Steps("Benchmark", each=True) as bar:

        def on_progress(progress: Progress) -> None:
            if progress.done == progress.total:
                bar.update(labels.index(progress.label) + 1, len(labels), progress.label)

        suite = Suite(out / "transcripts", preset, seed=seed, on_progress=on_progress)
        return suite.run(entries), suite.transcripts


def _numbers(result: PolicyResult) -> dict[str, Any]:
    summary = result.summary
    return {
        "score": summary.score,
        "success": summary.success,
        "failure": summary.failure,
        "ci95": list(summary.ci95),
        "by_intention": dict(summary.by_intention),
        "fluent": result.fluent,
        "fit": result.fit,
    }
