"""Options that several commands share, each with its one sentence of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Language

LanguageOption = Annotated[Language, typer.Option("--language", help="Language of the talks.")]
_USER_TYPES = "Vanilla users hint at what they need; challenging ones never do and want more."
UserOption = Annotated[UserType, typer.Option("--user", help=_USER_TYPES)]
UserTypeOption = Annotated[UserType, typer.Option("--user-type", help=_USER_TYPES)]
"""Where --user says who plays the user."""
PresetOption = Annotated[
    str, typer.Option("--preset", help=f"Rules of the emotion and of the talk's end: {', '.join(PRESETS)}.")
]
ProfilesOption = Annotated[
    Path | None,
    typer.Option("--profiles", help="JSONL file of profiles, ours or official; default: the 100 held-out ones."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Everything random is drawn from this number.")]
DEVICE_HELP = "Where a local model computes: cpu, cuda, cuda:1, mps; auto: a GPU if there is one, for a large model."
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to standard output.")]
