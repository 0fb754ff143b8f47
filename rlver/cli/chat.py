"""`rlver chat`: you answer a simulated user, and learn afterwards how each reply was taken."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.options import (
    LanguageOption,
    PresetOption,
    ProfilesOption,
    UserOption,
)
from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rich.console import Console

    from rlver.core.dialogue import Dialogue


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("chat")(chat)


def chat(
    language: LanguageOption = "en",
    user: UserOption = "vanilla",
    preset: PresetOption = "sage",
    profile: Annotated[
        str | None, typer.Option("--profile", help="Id of the user to talk with; default: one is drawn.")
    ] = None,
    profiles: ProfilesOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Draws the user and what they say; default: by chance.")
    ] = None,
) -> None:
    """Answer a simulated user. At the end (or at Ctrl-D) you see the emotion, the reasons, and what the user wanted.

    Examples:

      rlver chat

      rlver chat --user challenging --seed 7

      rlver chat --language zh --profile zh-benchmark-2507-0000-...
    """
    from rich.console import Console

    from rlver.core.dialogue import Dialogue
    from rlver.core.emotion import get_preset
    from rlver.core.seeds import derive
    from rlver.evaluation.profiles import find_profile, load_profiles
    from rlver.policies.human import QUIT, HumanPolicy
    from rlver.rollout import Rollout, lead, run
    from rlver.users.embedded.user import EmbeddedUser

    rules = get_preset(preset)
    if seed is None:
        seed = random.randrange(1_000_000)
    if profile is None:
        who = random.Random(seed).choice(load_profiles(language, profiles))
    else:
        who = find_profile(profile, profiles)
        if who.language != language:
            raise RlverError(f"{profile}: this user speaks {who.language!r}; say --language {who.language}.")

    console = Console()
    console.print(
        f"Somebody in trouble talks to you: {rules.replies} replies at most, {QUIT} or Ctrl-D to leave (seed {seed}).",
        style="dim",
        highlight=False,
    )
    dialogue = Dialogue(who, rules)
    rollout = Rollout(dialogue, EmbeddedUser(language, user), derive(seed, "user", 0), derive(seed, "policy", 0))
    try:
        run(lead(rollout, HumanPolicy(console)))
    except KeyboardInterrupt:
        console.print()
    _debrief(dialogue, console)


def _debrief(dialogue: Dialogue, console: Console) -> None:
    """Show what the talk looked like from inside."""
    from rich.text import Text

    from rlver.evaluation.report import reasons_table
    from rlver.text.plain import plain

    last = dialogue.turns[-1].reaction if dialogue.turns else None
    if dialogue.stop is not None and last is not None:
        console.print(Text.assemble(("\nUser: ", "bold cyan"), plain(last.utterance), "\n"))
    if dialogue.turns:
        console.print(reasons_table(dialogue.turns))
    meaning = dialogue.stop.meaning if dialogue.stop else "you left the talk"
    lines = {
        "End": meaning,
        "Emotion": f"{dialogue.preset.start:.0f} -> {dialogue.emotion:.0f}",
        "Wanted, unsaid": f"{dialogue.profile.intention.meaning} ({dialogue.profile.intention})",
        "Profile": dialogue.profile.id,
    }
    for label, value in lines.items():
        console.print(Text.assemble((f"{label}: ", "bold"), plain(value)))
