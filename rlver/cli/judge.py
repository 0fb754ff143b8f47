"""`rlver judge`: is the embedded user's judgement near that of others, and can it be fooled?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.cli.options import JsonOption, LanguageOption, ProfilesOption, SeedOption, UserOption
from rlver.core.errors import RlverError
from rlver.core.interfaces import UserType

if TYPE_CHECKING:
    from rlver.users.calibration.recorded import Judged, Recorded
    from rlver.users.embedded.weights import Weights

app = typer.Typer(
    help="Calibrate, check and attack the embedded user's judgement.", no_args_is_help=True, rich_markup_mode="markdown"
)

TranscriptsOption = Annotated[
    list[Path],
    typer.Option("--transcripts", help="JSONL files, or folders of them, one file a model; ours or official."),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Weights that `rlver judge fit` wrote; default: those shipped.")
]
LookupOption = Annotated[
    Path | None, typer.Option("--profiles", help="Profiles of transcripts in our format that were not built in.")
]
ProfilesInOption = Annotated[
    Path | None,
    typer.Option("--profiles-in", help="Keep to the profile ids in this file: one a line, a JSON list, or JSONL."),
]


def register(root: typer.Typer) -> None:
    """Add the command to the app."""
    root.add_typer(app, name="judge")


@app.command()
def score(
    transcripts: TranscriptsOption,
    weights: WeightsOption = None,
    profiles_in: ProfilesInOption = None,
    profiles: LookupOption = None,
    user: UserOption = "vanilla",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare the agent's judgement of recorded dialogues with the recorded one.

    Every reply is judged with the recorded talk before it; intervals are 95 % bootstrap intervals over profiles.

    Examples:

      rlver judge score --transcripts recorded/

      rlver judge score --transcripts a.jsonl --transcripts b.jsonl --weights mine.json --profiles-in ids.txt --json
    """
    from rlver.users.calibration import measures

    dialogues, rows = _replies(transcripts, profiles, profiles_in, user)
    found = measures.score(rows, dialogues, _weights(weights), seed)
    _print(found, as_json, _score_lines)


@app.command()
def fit(
    transcripts: TranscriptsOption,
    out: Annotated[Path, typer.Option("--out", help="Where the weights go (JSON).")],
    language: LanguageOption = "zh",
    profiles_in: ProfilesInOption = None,
    profiles: LookupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the calibrated part of the judgement to recorded dialogues. The same files give the same weights.

    Example:

      rlver judge fit --transcripts recorded/ --language zh --out weights.json
    """
    from rlver.users.calibration.fit import fit as fit_weights

    dialogues, rows = _replies(transcripts, profiles, profiles_in, "vanilla")
    other = next((d for d in dialogues if d.profile.language != language), None)
    if other is not None:
        raise RlverError(f"{other.model}: a dialogue in {other.profile.language!r}, not {language!r}; say --language.")
    found = fit_weights(rows, language)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(out)
    told = {"out": str(out), "weights": found.mark, **found.provenance.model_dump(), "big_step": found.big_step}
    _print(told, as_json, lambda f: [f"{out}: weights {f['weights']} from {f['replies']} replies"])


@app.command()
def explain(
    transcripts: TranscriptsOption,
    dialogue: Annotated[int, typer.Option("--dialogue", min=1, help="Which dialogue of the files.")] = 1,
    turn: Annotated[int, typer.Option("--turn", min=1, help="Which of its replies.")] = 1,
    user: UserOption = "vanilla",
    weights: WeightsOption = None,
    profiles: LookupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the cues of one recorded reply with their points, which add up to the change.

    Example:

      rlver judge explain --transcripts recorded/model.jsonl --dialogue 3 --turn 2
    """
    from rlver.users.calibration.explain import explain as explain_reply

    found = explain_reply(_recorded(transcripts, profiles), dialogue, turn, user, _weights(weights))
    _print(found, as_json, _explain_lines)


@app.command("cross-validate")
def cross_validate(
    transcripts: TranscriptsOption,
    profiles: LookupOption = None,
    profiles_in: ProfilesInOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge every recorded reply by a fit that saw neither its profile nor its model.

    Five folds over profiles times pairs of held-out models; then the same with models seen and profiles unseen.

    Example:

      rlver judge cross-validate --transcripts recorded/
    """
    from rlver.cli.progress import Steps
    from rlver.users.calibration.cross_validation import cross_validate as validate

    dialogues, rows = _replies(transcripts, profiles, profiles_in, "vanilla")
    with Steps("fits") as steps:
        found = validate(rows, dialogues, seed, lambda done, total: steps.update(done, total))
    _print(found, as_json, _cross_lines)


@app.command("profile-user")
def profile_user(
    transcripts: Annotated[
        list[Path] | None,
        typer.Option("--transcripts", help="Fixed contexts and replies; default: built-in scripted talks."),
    ] = None,
    language: LanguageOption = "en",
    profiles: LookupOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """How accepting and how open are the two kinds of user? (RLVER, section 4.3)

    Both judge the same replies in the same contexts (acceptance: the share after which the emotion rises), and what
    they say in talks with the same supporters is read for how well attitude, thoughts and needs show (0-10).

    Examples:

      rlver judge profile-user

      rlver judge profile-user --transcripts recorded/ --language zh
    """
    from rlver.users.calibration.acceptance import profile_users

    recorded = _recorded(transcripts, profiles) if transcripts else None
    _print(profile_users(language, recorded, seed), as_json, _user_lines)


@app.command()
def dynamics(
    transcripts: Annotated[
        list[Path] | None, typer.Option("--transcripts", help="Recorded dialogues to stand beside, as a column.")
    ] = None,
    language: LanguageOption = "en",
    user: UserOption = "vanilla",
    profiles: LookupOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """How do emotions move in closed loop with better and worse policies, beside recorded dialogues?

    Example:

      rlver judge dynamics --language zh --transcripts recorded/
    """
    from rlver.users.calibration.dynamics import closed_loop

    recorded = _recorded(transcripts, profiles) if transcripts else None
    _print(closed_loop(language, user, recorded, seed), as_json, _dynamics_lines)


@app.command()
def redteam(
    language: LanguageOption = "en",
    profiles: ProfilesOption = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Profiles to attack.")] = 100,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run scripted cheats, and three honest supporters, against both kinds of user. Exit code 1 if a limit is broken.

    Example:

      rlver judge redteam --language zh
    """
    from rlver.cli.progress import Steps
    from rlver.evaluation.profiles import load_profiles
    from rlver.users.calibration.redteam import run

    chosen = load_profiles(language, profiles)[:n]
    with Steps("red team") as steps:
        found = run(chosen, seed=seed, weights=_weights(weights), on_cheat=steps.update)
    _print(found, as_json, _redteam_lines)
    if found["failed"]:
        raise typer.Exit(1)


@app.command("tag-agreement")
def tag_agreement(
    path: Annotated[Path, typer.Argument(help="JSONL with 'reply', 'strategy' and, if at hand, 'context'.")],
    as_json: JsonOption = False,
) -> None:
    """Compare the English act tagger with people's labels of support strategies (ESConv's eight).

    Example:

      rlver judge tag-agreement strategies.jsonl
    """
    from rlver.users.calibration.tagging import agreement, read_labelled

    _print(agreement(read_labelled(path)), as_json, _agreement_lines)


def _weights(path: Path | None) -> Weights:
    from rlver.users.embedded.weights import default_weights, read_weights

    return read_weights(path) if path else default_weights()


def _recorded(paths: Sequence[Path], profiles: Path | None, profiles_in: Path | None = None) -> list[Recorded]:
    from rlver.formats.profile_files import read_profiles
    from rlver.users.calibration.recorded import read_ids, read_recorded

    dialogues = read_recorded(paths, read_profiles(profiles) if profiles else ())
    if profiles_in is not None:
        ids = read_ids(profiles_in)
        dialogues = [dialogue for dialogue in dialogues if dialogue.profile.id in ids]
        if not dialogues:
            raise RlverError(f"{profiles_in}: none of its ids is a profile of these transcripts.")
    return dialogues


def _replies(
    paths: Sequence[Path], profiles: Path | None, profiles_in: Path | None, user: UserType
) -> tuple[list[Recorded], list[Judged]]:
    from rlver.cli.progress import Steps
    from rlver.users.calibration.recorded import judged_replies

    dialogues = _recorded(paths, profiles, profiles_in)
    with Steps("dialogues") as steps:
        rows = judged_replies(dialogues, user, lambda done: steps.update(done, len(dialogues)))
    if not rows:
        raise RlverError("none of these dialogues holds a judged reply.")
    return dialogues, rows


def _print(found: dict[str, Any], as_json: bool, lines: Any) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(found)))


def _measures(name: str, turn: dict[str, Any]) -> str:
    def one(key: str) -> str:
        low, high = turn["ci95"][key]
        return f"{turn[key]:.3f} ({low:.3f}-{high:.3f})"

    return f"{name:<22}{one('pearson'):<24}{one('spearman'):<24}{one('sign_accuracy')}"


_HEAD = f"{'':<22}{'Pearson (95 % interval)':<24}{'Spearman':<24}sign accuracy"


def _model_lines(models: dict[str, Any]) -> list[str]:
    lines = [f"Over models: Spearman {models['spearman']:.3f}, mean absolute error of the score "
             f"{models['score_mae']:.1f}", f"{'model':<34}{'dialogues':>9}{'recorded':>10}{'judged':>8}"]  # fmt: skip
    for model, part in sorted(models["by_model"].items(), key=lambda item: -item[1]["recorded"]["score"]):
        lines.append(f"{model[:33]:<34}{part['n']:>9}{part['recorded']['score']:>10.1f}{part['judged']['score']:>8.1f}")
    return lines


def _score_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['n']} judged replies of {found['dialogues']} dialogues, weights {found['weights']}", "", _HEAD,
        _measures("turn", found["turn"]), _measures("turn, reply alone", found["turn_without_score"]),
    ]  # fmt: skip
    for title, key in (("intention", "by_intention"), ("band", "by_band")):
        lines += ["", f"{title:<22}{'replies':>8}{'Pearson':>10}{'sign':>8}"]
        lines += [
            f"{name:<22}{part['n']:>8}{part['pearson']:>10.3f}{part['sign_accuracy']:>8.3f}"
            for name, part in found[key].items()
        ]
    lines += ["", f"{'step':<22}{'predicted':>10}{'recorded':>10}{'mean change there':>19}"]
    for name, part in found["calibration"].items():
        there = part["mean_change_when_predicted"]
        mean = "-" if there is None else f"{there:+.2f}"
        lines.append(f"{int(name):<+22}{part['predicted']:>10.1%}{part['recorded']:>10.1%}{mean:>19}")
    return [*lines, "", *_model_lines(found["models"])]


def _cross_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['n']} replies, {found['models']} models, {found['profiles']} profiles, {found['fits']} fits"]
    for name, title in (("unseen_models", "Model and profile unseen"), ("seen_models", "Profile unseen, model seen")):
        lines += ["", title, _HEAD, _measures("turn", found[name]["turn"]), *_model_lines(found[name]["models"])]
    return lines


def _explain_lines(found: dict[str, Any]) -> list[str]:
    head = [
        f"{found['model']}, dialogue {found['dialogue']}, reply {found['turn']}, hidden intention {found['intention']}",
        found["reply"], "",
    ]  # fmt: skip
    body = [f"{reason['points']:>+7.2f}  {reason['cue']}" for reason in found["reasons"]]
    return [*head, *body, f"{found['change']:>+7.2f}  change (recorded: {found['recorded']:+.0f})"]


def _user_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['replies']} replies ({found['source']})", f"{'user':<14}{'acceptance':>11}{'published':>11}"
             f"{'need shown':>12}{'published':>11}"]  # fmt: skip
    for user, part in found["users"].items():
        lines.append(
            f"{user:<14}{part['acceptance']:>11.1%}{part['published_acceptance']:>11.1%}"
            f"{part['need_expression']:>12.1%}{part['published_need_expression']:>11.1%}"
        )
    return lines


def _dynamics_lines(found: dict[str, Any]) -> list[str]:
    names = list(found["policies"])
    lines = [" " * 30 + "".join(f"{name[:13]:>14}" for name in names)]
    for key in next(iter(found["policies"].values())):
        cells = (found["policies"][name][key] for name in names)
        lines.append(f"{key:<30}" + "".join(f"{'-' if c is None else f'{c:.2f}':>14}" for c in cells))
    return lines


def _redteam_lines(found: dict[str, Any]) -> list[str]:
    from rlver.users.calibration.redteam import limit

    lines = [f"{'':<30}{'vanilla':>9}{'challenging':>13}{'limit':>9}"]
    for name, part in (found["cheats"] | found["honest"]).items():
        sign = ">" if name in found["honest"] else "<"
        lines.append(f"{name:<30}{part['vanilla']:>9.1f}{part['challenging']:>13.1f}{sign:>6}{limit(name):>3.0f}")
    return [*lines, f"Broken: {', '.join(found['failed'])}" if found["failed"] else "Every limit is kept."]


def _agreement_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['n']} replies: accuracy {found['accuracy']:.3f}, macro-F1 {found['macro_f1']:.3f}, "
        f"kappa {found['kappa']:.3f}",
        f"{'strategy':<30}{'n':>6}{'precision':>11}{'recall':>8}{'F1':>7}",
    ]
    for name, part in found["by_strategy"].items():
        lines.append(f"{name:<30}{part['n']:>6}{part['precision']:>11.2f}{part['recall']:>8.2f}{part['f1']:>7.2f}")
    held = found.get("held_out")
    if held:
        lines.append(
            f"Refitted in five folds over dialogues: accuracy {held['accuracy']:.3f}, macro-F1 {held['macro_f1']:.3f}, "
            f"kappa {held['kappa']:.3f}"
        )
    return lines
