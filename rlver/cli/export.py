"""`rlver export`: a trained policy as a folder that can be shared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("export", rich_help_panel="Train")(export)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="Folder of a run (for its policy/), of a checkpoint in it, of its best/ or base/, or of any policy.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to create. It must not hold anything yet.")],
    results: Annotated[
        Path | None,
        typer.Option(
            help="A results.json of `rlver bench`, for the model card.  [default: the evaluations of the run itself]"
        ),
    ] = None,
    kind: Annotated[
        Literal["merged", "adapter"],
        typer.Option(
            "--format",
            help="merged: a complete model; adapter: the LoRA adapter alone, which needs the base model, too.",
        ),
    ] = "merged",
    base_model: Annotated[
        str | None,
        typer.Option(help="Name of the base model on the hub, for the model card: ORGANISATION/NAME."),
    ] = None,
) -> None:
    """Write a trained policy as a folder that plain transformers loads, with a model card.

    The folder holds the weights as safetensors, the tokenizer with its chat template, the sampling settings of the
    training, and a README.md. This model card says how to use the policy, how it was trained, and its score with the
    interval, the preset and the simulated user ("not measured" if there is none). Nothing is uploaded. Before you
    publish the folder, read the card and choose a license.

    Examples:

      rlver export runs/mine --out share/my-policy

      rlver bench --policy runs/mine/base --policy runs/mine/policy --out runs/bench/mine

      rlver export runs/mine --results runs/bench/mine/results.json --out share/measured

      rlver export runs/mine/checkpoints/step-000020 --out share/step-20
    """
    from rlver.train.runs.export import export as write

    write(source, out, kind=kind, results=results, base_model=base_model)
    typer.echo(
        f"Exported: {out}\nModel card: {out / 'README.md'} (read it and choose a license)\n"
        f"To publish it: hf upload ORGANISATION/{out.resolve().name} {out}"
    )
