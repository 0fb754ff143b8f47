"""`rlver export`: a trained policy as a folder to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("export")(export)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run (its policy/), its best/ or base/, one of its checkpoints, or any policy folder.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not hold anything yet.")],
    results: Annotated[
        Path | None,
        typer.Option(help="results.json of rlver bench, for the card; default: what the run measured itself."),
    ] = None,
    kind: Annotated[
        Literal["merged", "adapter"],
        typer.Option("--format", help="A whole model, or a LoRA adapter as it is (its users need the base, too)."),
    ] = "merged",
    base_model: Annotated[
        str | None,
        typer.Option(help="Name of the starting model on the hub, for the card: ORGANISATION/NAME."),
    ] = None,
) -> None:
    """Write a trained policy as a folder that plain transformers loads, with a model card.

    The folder holds the weights as safetensors, tokenizer and chat template, how to sample as in training, and a
    README.md that tells how to use it, how it was trained, and its score with interval, preset and simulated user
    ("not measured" if nobody measured it). It is ready to be uploaded, but nothing is: read the card and choose a
    license first.

    Examples:

      rlver export runs/mine --out share/my-policy

      rlver bench --policy runs/mine/base --policy runs/mine/policy --out runs/bench/mine

      rlver export runs/mine --results runs/bench/mine/results.json --out share/measured

      rlver export runs/mine/checkpoints/step-000020 --out share/step-20
    """
    from rlver.train.runs.export import export as write

    write(source, out, kind=kind, results=results, base_model=base_model)
    typer.echo(
        f"Exported: {out}\nModel card: {out / 'README.md'} (read it, and choose a license)\n"
        f"To publish it yourself: hf upload ORGANISATION/{out.resolve().name} {out}"
    )
