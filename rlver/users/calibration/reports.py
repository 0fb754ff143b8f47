"""What measures of the judge look like on a console: sentences and tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from rlver.text.table import Column, Table
from rlver.users.calibration.redteam import limit
from rlver.users.embedded.explanations import explanation

Result = dict[str, Any]
"""What a measure returns and `--json` prints."""
Report = Iterator[RenderableType]
"""The lines and tables of a report, from top to bottom."""


def _measures_table(title: str, rows: dict[str, Result]) -> Table:
    """Correlations and the sign accuracy of some predictions, each with its 95 % interval."""
    headings = ("Pearson", "95 %", "Spearman", "95 %", "same sign", "95 %")
    table = Table(Column("", "name"), *map(Column, headings), title=title)
    for name, row in rows.items():
        cells = []
        for key in ("pearson", "spearman", "sign_accuracy"):
            low, high = row["ci95"][key]
            cells += [f"{row[key]:.3f}", f"{low:.3f}-{high:.3f}"]
        table.add(name, *cells)
    return table


def _model_report(models: Result) -> Report:
    yield (
        f"Over models: Spearman {models['spearman']:.3f}, mean absolute error of the score {models['score_mae']:.1f}\n"
    )
    table = Table(Column("model", "name"), Column("dialogues"), Column("recorded"), Column("judged"))
    for model, part in sorted(models["by_model"].items(), key=lambda item: -item[1]["recorded"]["score"]):
        table.add(model, str(part["n"]), f"{part['recorded']['score']:.1f}", f"{part['judged']['score']:.1f}")
    yield table


def score_report(result: Result) -> Report:
    """The report of `measures.score`."""
    yield f"{result['n']} judged replies of {result['dialogues']} dialogues, weights {result['weights']}\n"
    yield _measures_table("", {"all cues": result["turn"], "emotion left out": result["turn_without_score"]})
    for title, key in (("intention", "by_intention"), ("band", "by_band")):
        table = Table(Column(title, "name"), Column("replies"), Column("Pearson"), Column("same sign"))
        for name, part in result[key].items():
            table.add(name, str(part["n"]), f"{part['pearson']:.3f}", f"{part['sign_accuracy']:.3f}")
        yield ""
        yield table
    table = Table(Column("step", "name"), Column("predicted"), Column("recorded"), Column("mean recorded change"))
    for name, part in result["calibration"].items():
        mean = part["mean_change_when_predicted"]
        cells = f"{part['predicted']:.1%}", f"{part['recorded']:.1%}", "-" if mean is None else f"{mean:+.2f}"
        table.add(f"{int(name):+}", *cells)
    yield ""
    yield table
    yield ""
    yield from _model_report(result["models"])


def cross_validation_report(result: Result) -> Report:
    """The report of `cross_validation`."""
    yield f"{result['n']} replies, {result['models']} models, {result['profiles']} profiles, {result['fits']} fits"
    for name, title in (("unseen_models", "Model and profile unseen"), ("seen_models", "Profile unseen, model seen")):
        yield ""
        yield _measures_table(title, {"all cues": result[name]["turn"]})
        yield from _model_report(result[name]["models"])


def explanation_report(result: Result) -> Report:
    """The report of `explain`: every cue of a reply with its points and what it means."""
    yield (
        f"{result['model']}, dialogue {result['dialogue']}, reply {result['turn']}, hidden intention "
        f"{result['intention']}\n{result['reply']}\n"
    )
    table = Table(Column("points"), Column("cue", "name"), Column("what it means", "text"))
    for reason in result["reasons"]:
        table.add(f"{reason['points']:+.2f}", reason["cue"], explanation(reason["cue"], result["language"]))
    table.add(f"{result['change']:+.2f}", "change", f"the recorded judge gave {result['recorded']:+.0f}")
    yield table


def user_type_report(result: Result) -> Report:
    """The report of `acceptance.measure_user_types`."""
    yield f"{result['replies']} replies ({result['source']})\n"
    headings = ("acceptance", "published", "need shown", "published")
    table = Table(Column("user type", "name"), *map(Column, headings))
    for user_type, part in result["users"].items():
        keys = ("acceptance", "published_acceptance", "need_expression", "published_need_expression")
        table.add(user_type, *(f"{part[key]:.1%}" for key in keys))
    yield table


def dynamics_report(result: Result) -> Report:
    """The report of `dynamics`."""
    policies = result["policies"]
    table = Table(Column("", "name"), *map(Column, policies))
    for key in next(iter(policies.values())):
        values = [policies[name][key] for name in policies]
        table.add(key, *("-" if value is None else f"{value:.2f}" for value in values))
    yield table


def redteam_report(result: Result) -> Report:
    """The report of `redteam.run`."""
    table = Table(Column("policy", "name"), Column("vanilla"), Column("challenging"), Column("limit"))
    for name, part in (result["cheats"] | result["honest"]).items():
        sign = "above" if name in result["honest"] else "at most"
        table.add(name, f"{part['vanilla']:.1f}", f"{part['challenging']:.1f}", f"{sign} {limit(name):.0f}")
    yield table
    yield f"Broken limits: {', '.join(result['failed'])}" if result["failed"] else "No limit is broken."


def agreement_report(result: Result) -> Report:
    """The report of `tagging.agreement`."""

    def figures(part: Result) -> str:
        return f"accuracy {part['accuracy']:.3f}, macro-F1 {part['macro_f1']:.3f}, kappa {part['kappa']:.3f}"

    yield f"{result['n']} replies: {figures(result)}\n"
    headings = ("n", "precision", "recall", "F1")
    table = Table(Column("strategy", "name"), *map(Column, headings))
    for name, part in result["by_strategy"].items():
        table.add(name, str(part["n"]), f"{part['precision']:.2f}", f"{part['recall']:.2f}", f"{part['f1']:.2f}")
    yield table
    if held_out := result.get("held_out"):
        yield f"\nRefitted in five folds over dialogues: {figures(held_out)}"
