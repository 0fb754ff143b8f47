"""`rlver judge`: does the embedded user's judge agree with other judges, and can a policy cheat it?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.console import show
from rlver.cli.options import (
    TRANSCRIPTS_HELP,
    JsonOption,
    LanguageOption,
    ProfilesOption,
    SeedOption,
    TranscriptsArgument,
    UserTypeOption,
)
from rlver.core.errors import RlverError
from rlver.core.files import replace_file
from rlver.core.interfaces import UserType

if TYPE_CHECKING:
    from rlver.users.calibration.recorded import JudgedReply, RecordedDialogue
    from rlver.users.calibration.reports import Report, Result
    from rlver.users.embedded.weights import Weights

app = typer.Typer(
    help="Check, explain, fit and attack the judge of the embedded user.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="File of weights that `rlver judge fit` wrote.  [default: the built-in weights]"),
]
LookupOption = Annotated[
    Path | None,
    typer.Option("--profiles", help="JSONL file of the profiles, for transcripts in our format of other profiles."),
]
ProfilesInOption = Annotated[
    Path | None,
    typer.Option("--profiles-in", help="Use only the profile ids in this file: one a line, a JSON list, or JSONL."),
]


def register(root: typer.Typer) -> None:
    """Add the command to the app."""
    root.add_typer(app, name="judge", rich_help_panel="Simulated users")


@app.command()
def score(
    files: TranscriptsArgument,
    weights: WeightsOption = None,
    profiles_in: ProfilesInOption = None,
    profiles: LookupOption = None,
    user_type: UserTypeOption = "vanilla",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare the judge with the judge that recorded some dialogues.

    The judge reads every reply with the recorded dialogue before it. The row "emotion left out" is
    without the points for the emotion before the reply and for the last changes. Intervals are 95 % bootstrap intervals
    over profiles.

    Examples:

      rlver judge score recorded/

      rlver judge score a.jsonl b.jsonl --weights mine.json --profiles-in ids.txt --json
    """
    from rlver.users.calibration import measures
    from rlver.users.calibration.reports import score_report

    dialogues, rows = _replies(files, profiles, profiles_in, user_type)
    _print(measures.score(rows, dialogues, _weights(weights), seed), as_json, score_report)


@app.command()
def fit(
    files: TranscriptsArgument,
    out: Annotated[Path, typer.Option("--out", help="JSON file to write the weights to.")],
    language: LanguageOption = "zh",
    profiles_in: ProfilesInOption = None,
    profiles: LookupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the calibrated part of the judge to recorded dialogues. The same files give the same weights.

    Example:

      rlver judge fit recorded/ --language zh --out weights.json
    """
    from rlver.users.calibration.fit import fit as fit_weights

    dialogues, rows = _replies(files, profiles, profiles_in, "vanilla")
    mismatch = next((d for d in dialogues if d.profile.language != language), None)
    if mismatch is not None:
        raise RlverError(
            f"{mismatch.model}: holds a dialogue in {mismatch.profile.language!r}, not in {language!r}; choose the "
            "language with --language."
        )
    fitted = fit_weights(rows, language)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, (fitted.model_dump_json(indent=1) + "\n").encode())
    summary = {"out": str(out), "weights": fitted.mark, **fitted.provenance.model_dump(), "big_step": fitted.big_step}
    _print(summary, as_json, lambda s: iter([f"{s['out']}: weights {s['weights']}, fitted to {s['replies']} replies"]))


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=TRANSCRIPTS_HELP, show_default=False)],
    dialogue: Annotated[int, typer.Option("--dialogue", min=1, help="Number of the dialogue in the file.")] = 1,
    turn: Annotated[int, typer.Option("--turn", min=1, help="Number of the reply in the dialogue.")] = 1,
    user_type: UserTypeOption = "vanilla",
    weights: WeightsOption = None,
    profiles: LookupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show why the judge takes one recorded reply as it does: every cue and its points, which add up to the change.

    Example:

      rlver judge explain recorded/model.jsonl --dialogue 3 --turn 2
    """
    from rlver.users.calibration.explain import explain as explain_reply
    from rlver.users.calibration.reports import explanation_report

    explanation = explain_reply(_recorded([file], profiles), dialogue, turn, user_type, _weights(weights))
    _print(explanation, as_json, explanation_report)


@app.command("cross-validate")
def cross_validate(
    files: TranscriptsArgument,
    profiles: LookupOption = None,
    profiles_in: ProfilesInOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge every recorded reply with weights that were fitted without its profile and without its model.

    There are five folds over profiles for every pair of held-out models. A second table holds out profiles only.

    Example:

      rlver judge cross-validate recorded/
    """
    from rlver.cli.progress import Steps
    from rlver.users.calibration.cross_validation import cross_validate as validate
    from rlver.users.calibration.reports import cross_validation_report

    dialogues, rows = _replies(files, profiles, profiles_in, "vanilla")
    with Steps("Fits") as steps:
        measured = validate(rows, dialogues, seed, lambda done, total: steps.update(done, total))
    _print(measured, as_json, cross_validation_report)


@app.command("profile-user")
def profile_user(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help=f"{TRANSCRIPTS_HELP} Both user types judge their replies.  [default: dialogues with scripted "
            "supporters]",
            show_default=False,
        ),
    ] = None,
    language: LanguageOption = "en",
    profiles: LookupOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure how accepting and how open the two user types are (RLVER paper, section 4.3).

    Acceptance is the share of replies that raise the emotion. Both types judge the same replies in the same dialogues.
    Openness is how clearly attitude, thoughts and needs show in what the users say (0-10), in dialogues with the same
    supporters.

    Examples:

      rlver judge profile-user

      rlver judge profile-user recorded/ --language zh
    """
    from rlver.users.calibration.acceptance import measure_user_types
    from rlver.users.calibration.reports import user_type_report

    recorded = _recorded(files, profiles) if files else None
    _print(measure_user_types(language, recorded, seed), as_json, user_type_report)


@app.command()
def dynamics(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help=f"{TRANSCRIPTS_HELP} They fill a column of the table.", show_default=False),
    ] = None,
    language: LanguageOption = "en",
    user_type: UserTypeOption = "vanilla",
    profiles: LookupOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure how emotions move in dialogues with better and worse policies, beside published and recorded ones.

    Examples:

      rlver judge dynamics

      rlver judge dynamics recorded/ --language zh
    """
    from rlver.users.calibration.dynamics import closed_loop
    from rlver.users.calibration.reports import dynamics_report

    recorded = _recorded(files, profiles) if files else None
    _print(closed_loop(language, user_type, recorded, seed), as_json, dynamics_report)


@app.command()
def redteam(
    language: LanguageOption = "en",
    profiles: ProfilesOption = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of profiles to attack.")] = 100,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Let scripted cheats, and three honest supporters, talk with both user types. Exit code 1 if a limit is broken.

    Example:

      rlver judge redteam --language zh
    """
    from rlver.cli.progress import Steps
    from rlver.evaluation.profiles import load_profiles
    from rlver.users.calibration.redteam import run
    from rlver.users.calibration.reports import redteam_report

    chosen = load_profiles(language, profiles)[:n]
    with Steps("Red team") as steps:
        result = run(chosen, seed=seed, weights=_weights(weights), on_cheat=steps.update)
    _print(result, as_json, redteam_report)
    if result["failed"]:
        raise typer.Exit(1)


@app.command("tag-agreement")
def tag_agreement(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSONL file with 'reply', 'strategy' and, if known, 'context'.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare the English act tagger with human labels of support strategies (the eight of ESConv).

    Example:

      rlver judge tag-agreement strategies.jsonl
    """
    from rlver.users.calibration.reports import agreement_report
    from rlver.users.calibration.tagging import agreement, read_labelled

    _print(agreement(read_labelled(file)), as_json, agreement_report)


def _weights(path: Path | None) -> Weights:
    from rlver.users.embedded.weights import default_weights, read_weights

    return read_weights(path) if path else default_weights()


def _recorded(paths: Sequence[Path], profiles: Path | None, profiles_in: Path | None = None) -> list[RecordedDialogue]:
    from rlver.formats.profile_files import read_profiles
    from rlver.users.calibration.recorded import read_ids, read_recorded

    dialogues = read_recorded(paths, read_profiles(profiles) if profiles else ())
    if profiles_in is not None:
        ids = read_ids(profiles_in)
        dialogues = [dialogue for dialogue in dialogues if dialogue.profile.id in ids]
        if not dialogues:
            raise RlverError(f"{profiles_in}: these transcripts have none of its profile ids.")
    return dialogues


def _replies(
    paths: Sequence[Path], profiles: Path | None, profiles_in: Path | None, user_type: UserType
) -> tuple[list[RecordedDialogue], list[JudgedReply]]:
    from rlver.cli.progress import Steps
    from rlver.users.calibration.recorded import judged_replies

    dialogues = _recorded(paths, profiles, profiles_in)
    with Steps("Dialogues") as steps:
        rows = judged_replies(dialogues, user_type, lambda done: steps.update(done, len(dialogues)))
    if not rows:
        raise RlverError("these dialogues hold no judged reply.")
    return dialogues, rows


def _print(result: Result, as_json: bool, report: Callable[[Result], Report]) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(*report(result))
