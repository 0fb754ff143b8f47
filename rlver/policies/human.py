"""A person at the terminal who plays the policy."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from rich.console import Console
from rich.text import Text

from rlver.core.dialogue import Dialogue, Reply
from rlver.text.plain import plain
from rlver.text.terminal import ask_line

QUIT = "/quit"
HELP = "/help"


class HumanPolicy:
    """Shows the user's utterance and asks for a reply. See `Policy` for its methods.

    `/help` explains the commands. `/quit` and the end of the input (Ctrl-D) raise KeyboardInterrupt, like Ctrl-C.
    """

    spec = "human"
    think = False
    prompt_hash = ""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._numbers: WeakKeyDictionary[Dialogue, int] = WeakKeyDictionary()
        self._count = 0

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`. Other dialogues wait for the person."""
        if dialogue not in self._numbers:
            self._count += 1
            self._numbers[dialogue] = self._count
        number = self._numbers[dialogue]
        speaker = f"User {number}" if number > 1 else "User"
        utterance = plain(dialogue.messages()[-1].content)
        self._console.print(Text.assemble((f"\n{speaker}: ", "bold cyan"), utterance))
        prompt = f"[bold]You[/] [dim]({len(dialogue.turns) + 1}/{dialogue.preset.replies})[/]"
        while True:
            line = ask_line(prompt, self._console)
            if line == QUIT:
                raise KeyboardInterrupt
            if not line.startswith("/"):
                return Reply.parse(line, self.think)
            self._console.print(
                f"Type your reply to the user and press Enter. {QUIT} or Ctrl-D leaves, {HELP} shows this text.",
                style="dim",
            )
