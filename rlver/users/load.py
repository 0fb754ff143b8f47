"""From a spec, as people type it after `--user`, to a simulated user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.core.profile import Language
from rlver.llm import LLM
from rlver.llm.endpoint import is_endpoint
from rlver.users.embedded.speech import Phrasing
from rlver.users.embedded.user import EmbeddedUser
from rlver.users.llm import JudgeOptions, LlmUser


def load_user(
    spec: str,
    language: Language,
    *,
    user_type: UserType = "vanilla",
    phrasing: Phrasing = "heldout",
    connect: Callable[[str], LLM],
    judges: Sequence[str] = (),
    options: JudgeOptions | None = None,
) -> User:
    """The user that `spec` names: `embedded`, `openai:MODEL@BASE_URL`, `any:PROVIDER/MODEL` or `human`.

    `vanilla` and `challenging` alone are short for the embedded user of that type.

    Args:
        connect: makes the client of a spec, one and the same for the same spec.
        judges: specs of models that judge in the place of the one that speaks.

    Raises:
        RlverError: there is no such user, or judges are given for one that judges by itself.
    """
    if is_endpoint(spec):
        return LlmUser(connect(spec), language, user_type, judges=[connect(judge) for judge in judges], options=options)
    if judges:
        raise RlverError(f"--judge: the user {spec!r} judges by itself; take --user openai:MODEL@BASE_URL.")
    if spec in get_args(UserType):
        return EmbeddedUser(language, spec, phrasing)  # type: ignore[arg-type]
    if spec == "embedded":
        return EmbeddedUser(language, user_type, phrasing)
    if spec == "human":
        from rlver.users.human import HumanUser

        return HumanUser()
    raise RlverError(
        f"--user {spec}: unknown; say embedded, vanilla, challenging, openai:MODEL@BASE_URL, any:PROVIDER/MODEL "
        "or human."
    )
