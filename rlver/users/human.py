"""A person at the terminal who plays the user: they take the role of a profile and rate each reply."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from rlver.core.dialogue import Dialogue, Opening, Reaction
from rlver.text.plain import plain
from rlver.text.terminal import ask_line

QUIT = "/quit"


class HumanUser:
    """Shows the profile to play and each reply, and asks how the emotion changes. See `User` for its methods.

    `/quit` and the end of the input (Ctrl-D) raise KeyboardInterrupt, like Ctrl-C.
    """

    identity = "human"

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    async def open(self, dialogue: Dialogue, seed: int) -> Opening:
        """Show the profile to play, and ask for the first utterance."""
        profile = dialogue.profile
        for label, text in (
            ("You are", profile.persona.text or profile.persona.name),
            ("What happened", profile.story.text),
            ("You want, without saying so", profile.intention.meaning),
        ):
            self._console.print(Text.assemble((f"\n{label}: ", "bold"), plain(text)))
        return Opening(profile.opening or self._ask("Your first words"))

    async def react(self, dialogue: Dialogue, seed: int) -> Reaction:
        """Show the reply, and ask for the change of emotion and the next utterance."""
        self._console.print(Text.assemble(("\nReply: ", "bold yellow"), plain(dialogue.turns[-1].reply)))
        question = f"Your emotion is {dialogue.emotion:.0f}. It changes by (-10 to 10)"
        while (change := _parse_points(self._ask(question))) is None:
            self._console.print("Type a number from -10 to 10.", style="red")
        return Reaction(change=change, utterance=self._ask("You say"))

    def _ask(self, prompt: str) -> str:
        """A line that the person types. Raises KeyboardInterrupt for `/quit`."""
        line = ask_line(f"[bold]{prompt}[/]", self._console)
        if line == QUIT:
            raise KeyboardInterrupt
        return line


def _parse_points(text: str) -> float | None:
    """The number in a text; None if it is not a number from -10 to 10."""
    try:
        points = float(text)
    except ValueError:
        return None
    return points if -10 <= points <= 10 else None
