"""From what people type after `--policy` to a policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy
from rlver.core.profile import Language
from rlver.llm import LLM, parse_endpoint
from rlver.llm.endpoint import is_endpoint
from rlver.policies.human import HumanPolicy
from rlver.policies.remote import RemotePolicy
from rlver.policies.scripted import SCRIPTED_NAMES, ScriptedPolicy

FOLDER_FILE = "rlver.json"
"""A trained folder says in this file what it was trained for."""


class FolderNote(BaseModel):
    """What `rlver.json` of a policy folder says; fields that are not listed here are let pass."""

    think: bool = False
    """Whether the policy writes `<think>...</think>` before each reply."""
    language: Language | None = None
    """The language that it was trained in; None means any."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of one reply in training."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of sampling in training."""


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
    """The policy that `spec` names: `scripted:NAME`, `human`, a folder with a model (`FOLDER`, `hf:FOLDER`), or a
    model behind an endpoint (`openai:MODEL@BASE_URL`, `any:PROVIDER/MODEL`).

    Args:
        think: think before each reply; None takes what the folder's `rlver.json` says, else no thinking. Scripted
            and human policies never think.
        max_tokens: most tokens of one reply of a model, thinking included; None takes what `rlver.json` says.
        temperature: of a model's sampling, 0 takes the likeliest token; None takes what `rlver.json` says.
        top_p: of the sampling of a model behind an endpoint; None leaves it to the endpoint.
        device: where a model in a folder computes; see `load_model`.
        connect: makes the client of an endpoint; by default one without a cache.

    Raises:
        RlverError: unknown script, no such folder, no usable model in it, one for another language, or no such device.
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
        others = ", no scripted:NAME, no openai:MODEL@BASE_URL and not human."
        hint = f"; did you mean scripted:{spec}?" if spec in SCRIPTED_NAMES else others
        raise RlverError(f"{spec}: this is no folder{hint}")
    note = read_note(folder)
    if note.language not in (None, language):
        raise RlverError(f"{folder}: this policy was trained in {note.language!r}, but {language!r} is asked for.")

    from rlver.inference.model_folder import load_model
    from rlver.policies.local import LocalPolicy  # torch, which the other policies do without

    model, tokenizer = load_model(folder, device)
    return LocalPolicy(
        model,
        tokenizer,
        language,
        think=note.think if think is None else think,
        spec=spec,
        max_tokens=note.max_tokens if max_tokens is None else max_tokens,
        temperature=note.temperature if temperature is None else temperature,
    )


def read_note(folder: Path) -> FolderNote:
    """What a policy folder says of itself; the defaults if it says nothing. Raises RlverError for a broken file."""
    path = folder / FOLDER_FILE
    if not path.is_file():
        return FolderNote()
    try:
        return FolderNote.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        what = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            what = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise RlverError(f"{path}: cannot be read as the note of a policy folder ({what}).") from None
