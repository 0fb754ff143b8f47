"""Makes a simulated user from a spec, as it is typed after `--user`, or from a Python object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

from rlver.core.errors import RlverError
from rlver.core.interfaces import User, UserType
from rlver.core.profile import Language
from rlver.llm import LLM, parse_endpoint
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
    connect: Callable[[str], LLM] | None = None,
    judges: Sequence[str] = (),
    options: JudgeOptions | None = None,
) -> User:
    """The user that `spec` names.

    Args:
        spec: `embedded`, `openai:MODEL@BASE_URL`, `any:PROVIDER/MODEL` or `human`. `vanilla` and `challenging` name the
            embedded user of that type.
        user_type: unless the spec names it.
        phrasing: of the embedded user.
        connect: makes the client of an endpoint, always the same one for the same spec; by default one without a cache.
        judges: specs of models that judge instead of the one that speaks.
        options: of a model as user.

    Raises:
        RlverError: there is no such user, or `judges` are given for a user that is no model.
    """
    if is_endpoint(spec):
        connect = connect or (lambda spec: LLM(parse_endpoint(spec)))
        return LlmUser(connect(spec), language, user_type, judges=[connect(judge) for judge in judges], options=options)
    if judges:
        raise RlverError(
            f"--judge: the user {spec!r} judges by itself; use a model as user, --user openai:MODEL@BASE_URL."
        )
    if spec in get_args(UserType):
        return EmbeddedUser(language, spec, phrasing)  # type: ignore[arg-type]  # mypy does not narrow the string
    if spec == "embedded":
        return EmbeddedUser(language, user_type, phrasing)
    if spec == "human":
        from rlver.users.human import HumanUser

        return HumanUser()
    raise RlverError(
        f"--user {spec}: unknown user; use embedded, vanilla, challenging, openai:MODEL@BASE_URL, any:PROVIDER/MODEL "
        "or human."
    )


def as_user(user: str | User, language: Language, user_type: UserType = "vanilla", **options: Any) -> User:
    """The simulated user that a spec or an object stands for.

    Args:
        user: a spec for `load_user`, or an object with `async open(dialogue, seed)` and `async react(dialogue, seed)`.
            If it has no `identity`, the name of its class is used.
        language, user_type: of the user that a spec names.
        options: of `load_user`.

    Raises:
        RlverError: it is neither, or see `load_user`.
    """
    if isinstance(user, str):
        return load_user(user, language, user_type=user_type, **options)
    methods = [getattr(user, name, None) for name in ("open", "react")]
    if isinstance(user, type) or not all(map(inspect.iscoroutinefunction, methods)):
        raise RlverError(
            f"user {user!r}: a user is a spec such as embedded, or an object with the async methods open and react."
        )
    return user if hasattr(user, "identity") else _NamedUser(user)


class _NamedUser:
    """A user object without an identity of its own, under the name of its class."""

    def __init__(self, user: User) -> None:
        self.identity = type(user).__name__
        self.open = user.open
        self.react = user.react
        if hasattr(user, "close"):
            self.close = user.close
