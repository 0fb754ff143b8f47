"""A person at the terminal as the simulated user: they feel, and say how much."""

from __future__ import annotations

from rich.console import Console
from rich.prompt import FloatPrompt, Prompt
from rich.text import Text

from rlver.core.dialogue import Dialogue, Reaction
from rlver.core.profile import Profile
from rlver.text.plain import plain
from rlver.users.base import Opening

QUIT = "/quit"


class HumanUser:
    """Shows the profile to play and each reply, and asks how the emotion changes. See `User`.

    `/quit` and the end of the input (Ctrl-D) raise KeyboardInterrupt, like Ctrl-C.
    """

    identity = "human"

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def open(self, profile: Profile, seed: int) -> Opening:
        """Show who to be, and ask for the first words."""
        for label, text in (
            ("You are", profile.persona.text or profile.persona.name),
            ("What happened", profile.story.text),
            ("You want, and do not say so", profile.intention.meaning),
        ):
            self._console.print(Text.assemble((f"\n{label}: ", "bold"), plain(text)))
        return Opening(profile.opening or self._ask("Your first words"), None, False)

    def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Show the reply, and ask for the change and the next words."""
        self._console.print(Text.assemble(("\nReply: ", "bold yellow"), plain(dialogue.turns[-1].reply)))
        change = 99.0
        while not -10 <= change <= 10:
            try:
                change = FloatPrompt.ask(
                    f"Your emotion is {dialogue.score:.0f}; it changes by (-10 to 10)", console=self._console
                )
            except EOFError:
                raise KeyboardInterrupt from None
        return Reaction(change=change, utterance=self._ask("You say"))

    def _ask(self, prompt: str) -> str:
        while True:
            try:
                said = Prompt.ask(f"[bold]{prompt}[/]", console=self._console).strip()
            except EOFError:
                raise KeyboardInterrupt from None
            if said == QUIT:
                raise KeyboardInterrupt
            if said:
                return said
