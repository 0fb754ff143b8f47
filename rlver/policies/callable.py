"""Any function from messages to a reply as a policy."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from rlver.core.dialogue import Dialogue, Reply
from rlver.core.errors import CallFailed, RlverError

ReplyFunction = Callable[[list[dict[str, str]]], str | Awaitable[str]]


class CallablePolicy:
    """Replies with a function. See `Policy` for its methods.

    The function gets the dialogue so far as a list of `{"role": ..., "content": ...}` dicts: the user's utterances with
    the role "user", its own replies with the role "assistant". There is no system prompt. It returns the reply.

    A sync function runs in the thread of the event loop, so dialogues call it one at a time. An async function is
    called for many dialogues at once.

    Args:
        function: sync or async. If it raises an exception, that dialogue ends as failed and the others go on.
        spec: the name under which results are kept; by default `callable:NAME` with the name of the function.
        think: whether replies come as `<think>...</think>reply`.
    """

    prompt_hash = ""

    def __init__(self, function: ReplyFunction, *, spec: str | None = None, think: bool = False) -> None:
        self.spec = spec or f"callable:{_name(function)}"
        self.think = think
        self._function = function

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`. The function does not get the seed.

        Raises:
            CallFailed: the function raised an exception.
            RlverError: the function did not return a string.
        """
        messages = [{"role": message.role, "content": message.content} for message in dialogue.messages()]
        try:
            text: Any = self._function(messages)
            if inspect.isawaitable(text):
                text = await text
        except Exception as error:
            raise CallFailed(f"{self.spec}: the function raised {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise RlverError(f"{self.spec}: the function must return a string, but it returned {type(text).__name__}.")
        return Reply.parse(text, self.think)


def _name(function: ReplyFunction) -> str:
    """The name of a function, or the class of another callable object."""
    name = getattr(function, "__name__", None) or type(function).__name__
    return name.strip("<>")  # <lambda>
