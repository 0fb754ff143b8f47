"""`rlver chat`: you reply to a simulated user, and learn afterwards how each reply was received."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated

import typer

from rlver.cli.options import (
    LanguageOption,
    PresetOption,
    ProfilesOption,
    UserOption,
    UserTypeOption,
)
from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rich.console import Console

    from rlver.core.dialogue import Dialogue


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("chat", rich_help_panel="Start here")(chat)


def chat(
    user: UserOption = "embedded",
    user_type: UserTypeOption = "vanilla",
    language: LanguageOption = "en",
    preset: PresetOption = "sage",
    profile: Annotated[
        str | None, typer.Option("--profile", help="Id of the profile to talk with.  [default: drawn at random]")
    ] = None,
    profiles: ProfilesOption = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the profile and of what the user says.  [default: random]"),
    ] = None,
) -> None:
    """Reply to a simulated user yourself.

    At the end (or when you leave with /quit or Ctrl-D) you see the emotion after each of your replies, the reasons in
    words, and what the user wanted.

    Examples:

      rlver chat

      rlver chat --user challenging --seed 7

      rlver chat --user openai:qwen3@http://localhost:8000/v1

      rlver chat --language zh --profile zh-benchmark-2507-0000-zh-anniversary-game-absolve
    """
    from rich.console import Console

    from rlver.core.dialogue import Dialogue
    from rlver.core.emotion import get_preset
    from rlver.core.seeds import derive
    from rlver.evaluation.profiles import find_profile, load_profiles
    from rlver.policies.human import HELP, QUIT, HumanPolicy
    from rlver.rollout import Rollout, closing, play_dialogue, run
    from rlver.users.load import load_user

    rules = get_preset(preset)
    if seed is None:
        seed = random.randrange(1_000_000)
    if profile is None:
        chosen = random.Random(seed).choice(load_profiles(language, profiles))
    else:
        chosen = find_profile(profile, [profiles] if profiles else ())
        if chosen.language != language:
            raise RlverError(f"{profile}: this user speaks {chosen.language!r}; add --language {chosen.language}.")
    if user == "human":
        raise RlverError("--user human: you are the one who replies; choose another user.")
    simulated_user = load_user(user, language, user_type=user_type)

    console = Console()
    console.print(
        f"A person in trouble talks to you. You have up to {rules.replies} replies. {HELP} explains the commands, "
        f"{QUIT} or Ctrl-D leaves (seed {seed}).",
        style="dim",
        highlight=False,
    )
    dialogue = Dialogue(chosen, rules)
    rollout = Rollout(dialogue, simulated_user, derive(seed, "user", 0), derive(seed, "policy", 0))
    try:
        run(closing(play_dialogue(rollout, HumanPolicy(console)), simulated_user))
    except KeyboardInterrupt:
        console.print()
    _debrief(dialogue, console)


def _debrief(dialogue: Dialogue, console: Console) -> None:
    """Show how each reply was received, and what the user wanted."""
    from rich.text import Text

    from rlver.evaluation.report import reasons_text
    from rlver.text.hanging import Hanging
    from rlver.text.plain import plain

    last = dialogue.turns[-1].reaction if dialogue.turns else None
    if dialogue.stop is not None and last is not None:
        console.print(Text.assemble(("\nUser: ", "bold cyan"), plain(last.utterance), "\n"))
    if dialogue.turns:
        console.print(Hanging(reasons_text(dialogue.turns, dialogue.preset.start, dialogue.profile.language), 11))
    if dialogue.error:
        console.print(Text.assemble(("Failed: ", "bold red"), plain(dialogue.error)))
    meaning = dialogue.stop.meaning if dialogue.stop else "you left the dialogue"
    lines = {
        "End": meaning,
        "Emotion": f"{dialogue.preset.start:.0f} -> {dialogue.emotion:.0f}",
        "Hidden intention": f"{dialogue.profile.intention.meaning} ({dialogue.profile.intention})",
        "Profile": dialogue.profile.id,
    }
    for label, value in lines.items():
        console.print(Text.assemble((f"{label}: ", "bold"), plain(value)))
