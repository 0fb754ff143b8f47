"""Options that several commands share, each with its one sentence of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlver.core.emotion import PRESETS
from rlver.core.interfaces import UserType
from rlver.core.profile import Language

LanguageOption = Annotated[Language, typer.Option("--language", help="Language of the dialogues.")]
USER_HELP = (
    "The simulated user, who speaks and judges. embedded: rules, without a language model; vanilla or challenging: "
    "short for the embedded user of that type; openai:MODEL@BASE_URL or any:PROVIDER/MODEL: a language model."
)
USERS = ["embedded", "vanilla", "challenging", "openai:", "any:"]
"""How specs of users begin, for completion."""
UserOption = Annotated[str, typer.Option("--user", metavar="SPEC", help=USER_HELP, autocompletion=lambda: USERS)]
USER_TYPE_HELP = (
    "Type of the simulated users. vanilla: they hint at what they need; challenging: they do not, and are harder to "
    "please."
)
UserTypeOption = Annotated[UserType, typer.Option("--user-type", help=USER_TYPE_HELP)]
PRESET_HELP = f"Rules for the emotion and for the end of a dialogue: {', '.join(PRESETS)}."
PresetOption = Annotated[
    str, typer.Option("--preset", help=PRESET_HELP, metavar="NAME", autocompletion=lambda: list(PRESETS))
]
ProfilesOption = Annotated[
    Path | None,
    typer.Option(
        "--profiles",
        help="JSONL file of profiles, in our format or the official one.  [default: the 100 held-out ones]",
    ),
]
PHRASING_HELP = (
    "Sentences of the embedded user: train: those of training; validation: those of evaluations during training; "
    "heldout: those of neither."
)
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
DEVICE_HELP = (
    "Where a local model computes: cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one and the model is large "
    "enough to gain from it."
)
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
TRANSCRIPTS_HELP = (
    "Transcripts: logs of `rlver bench`, files in our format, or official ones. A folder stands for all .jsonl files "
    "in it."
)
TranscriptsArgument = Annotated[list[Path], typer.Argument(metavar="FILE", help=TRANSCRIPTS_HELP, show_default=False)]
