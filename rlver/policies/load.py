"""Makes a policy from a spec, as it is typed after `--policy`, or from a Python object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

from rlver.core.errors import RlverError, first_problem
from rlver.core.interfaces import Policy
from rlver.core.profile import Language
from rlver.llm import LLM, parse_endpoint
from rlver.llm.endpoint import is_endpoint
from rlver.policies.callable import CallablePolicy, ReplyFunction
from rlver.policies.human import HumanPolicy
from rlver.policies.remote import RemotePolicy
from rlver.policies.scripted import SCRIPTED_NAMES, ScriptedPolicy

POLICY_FILE = "rlver.json"
"""File in a trained policy's folder that says how the policy was trained."""


class PolicyInfo(BaseModel):
    """The fields of `rlver.json` that sampling needs. Others are ignored."""

    think: bool = False
    """Whether the policy writes `<think>...</think>` before each reply."""
    language: Language | None = None
    """Language of the training; None means any."""
    max_tokens: int = Field(default=256, ge=1)
    """Largest number of tokens of one reply in training."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Sampling temperature in training."""


def load_policy(
    spec: str,
    language: Language,
    *,
    think: bool | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    device: str = "auto",
    connect: Callable[[str], LLM] | None = None,
) -> Policy:
    """The policy that `spec` names.

    Args:
        spec: `scripted:NAME`, `human`, a folder with a model (`FOLDER`, `hf:FOLDER`), or a model behind an endpoint
            (`openai:MODEL@BASE_URL`, `any:PROVIDER/MODEL`).
        think: whether the policy thinks before each reply; None takes the value in the folder's `rlver.json`, or else
            False. Scripted and human policies never think.
        max_tokens: largest number of tokens of a model's reply, thinking included; None takes the value in
            `rlver.json`, or leaves it to the endpoint.
        temperature: of a model's sampling. 0 takes the most likely token. None as for `max_tokens`.
        top_p: nucleus sampling of a model behind an endpoint; None leaves it to the endpoint.
        device: of a model in a folder; see `load_model`.
        connect: makes the client of an endpoint; by default one without a cache.

    Raises:
        RlverError: the script, the folder or the device does not exist, or the folder holds no usable model or one for
            another language.
    """
    kind, _, name = spec.partition(":")
    if kind == "scripted":
        return ScriptedPolicy(name, language)
    if spec == "human":
        return HumanPolicy()
    if is_endpoint(spec):
        llm = connect(spec) if connect else LLM(parse_endpoint(spec))
        return RemotePolicy(
            llm, language, think=bool(think), max_tokens=max_tokens, temperature=temperature, top_p=top_p
        )
    folder = Path(name if kind == "hf" else spec)
    if not folder.is_dir():
        hint = "use scripted:NAME, human, openai:MODEL@BASE_URL, any:PROVIDER/MODEL or a folder with a model."
        if spec in SCRIPTED_NAMES:
            hint = f"did you mean scripted:{spec}?"
        raise RlverError(f"{spec}: there is no such policy folder; {hint}")
    info = read_policy_info(folder)
    if info.language not in (None, language):
        raise RlverError(
            f"{folder}: this policy was trained in the language {info.language!r}, not in {language!r}; choose another "
            "policy or language."
        )

    from rlver.inference.model_folder import load_model
    from rlver.policies.local import LocalPolicy  # imports torch, which the other policies do without

    model, tokenizer = load_model(folder, device)
    return LocalPolicy(
        model,
        tokenizer,
        language,
        think=info.think if think is None else think,
        spec=spec,
        max_tokens=info.max_tokens if max_tokens is None else max_tokens,
        temperature=info.temperature if temperature is None else temperature,
    )


def as_policy(
    policy: str | Policy | ReplyFunction, language: Language, *, think: bool | None = None, **options: Any
) -> Policy:
    """The policy that a spec, a policy object or a function stands for.

    Args:
        policy: a spec for `load_policy`, an object with the members of `Policy`, or a function for `CallablePolicy`.
        language: of the policy that a spec names.
        think: of the policy that a spec names, or whether the function's replies contain `<think>...</think>`.
        options: of `load_policy`.

    Raises:
        RlverError: it is none of these, or see `load_policy`.
    """
    if isinstance(policy, str):
        return load_policy(policy, language, think=think, **options)
    if hasattr(policy, "reply") and not isinstance(policy, type):
        missing = [name for name in ("spec", "think", "prompt_hash") if not hasattr(policy, name)]
        if missing:
            raise RlverError(f"policy {policy!r}: a policy object also needs {', '.join(missing)}; see Policy.")
        return cast(Policy, policy)
    if callable(policy) and not isinstance(policy, type):
        return CallablePolicy(policy, think=bool(think))
    raise RlverError(
        f"policy {policy!r}: a policy is a spec such as scripted:hedge, an object with an async method reply, or a "
        "function from messages to a string."
    )


def read_policy_info(folder: Path) -> PolicyInfo:
    """The content of `rlver.json` in a policy folder. Defaults apply if there is no such file.

    Raises:
        RlverError: the file is broken.
    """
    path = folder / POLICY_FILE
    if not path.is_file():
        return PolicyInfo()
    try:
        return PolicyInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise RlverError(f"{path}: not a valid description of a policy ({reason}).") from None
