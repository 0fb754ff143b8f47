"""A person at the terminal as a policy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from rlver.core.dialogue import Dialogue
from rlver.text.plain import plain

QUIT = "/quit"


class HumanPolicy:
    """Shows what the user said and asks for a reply. See `Policy` for its methods.

    `/quit` and the end of the input (Ctrl-D) raise KeyboardInterrupt, like Ctrl-C.
    """

    spec = "human"
    think = False
    prompt_hash = ""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self.dialogues: list[Dialogue] = []
        """The dialogues of the batch, so that a talk that was left can still be looked at."""

    def start(self, dialogues: Sequence[Dialogue], seeds: Sequence[int]) -> None:
        """See `Policy.start`."""
        self.dialogues = list(dialogues)

    def reply(self, active: Sequence[int]) -> list[str]:
        """See `Policy.reply`."""
        return [self._ask(index) for index in active]

    def _ask(self, index: int) -> str:
        dialogue = self.dialogues[index]
        where = f"User {index + 1}" if len(self.dialogues) > 1 else "User"
        said = plain(dialogue.messages()[-1].content)
        self._console.print(Text.assemble((f"\n{where}: ", "bold cyan"), said))
        prompt = f"[bold]You[/] [dim]({len(dialogue.turns) + 1}/{dialogue.preset.replies})[/]"
        while True:
            try:
                reply = Prompt.ask(prompt, console=self._console).strip()
            except EOFError:
                raise KeyboardInterrupt from None
            if reply == QUIT:
                raise KeyboardInterrupt
            if reply:
                return reply
