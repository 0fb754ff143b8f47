"""Replies from a server that takes and returns token ids: vLLM or SGLang, with prefixes cached on its side.

A conversation is kept here as ids and sent whole every time. Weights reach the server through a folder that both can
read: written after every update, then named in a request.

Log-probs are those that the server reports. vLLM reports them before the temperature unless it is started with
`--logprobs-mode processed_logprobs`, SGLang after it unless SGLANG_RETURN_ORIGINAL_LOGPROB is set.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlver.core.errors import CallFailed, RlverError
from rlver.inference.engines.base import Sampled, Sampling
from rlver.llm import LLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Post(NamedTuple):
    """A request: path from the server's root, and body."""

    path: str
    body: Mapping[str, Any]


class Style(Protocol):
    """What a kind of server wants to be asked, and how it answers. An empty `model` is whatever it serves."""

    needs: str
    """How it must be started for this, in words."""
    adapter: bool
    """Whether it takes adapters (LoRA) instead of whole models."""

    def ask(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """Ask for one reply."""

    def read(self, answer: Any) -> Sampled:
        """The reply in an answer. Raises LookupError, TypeError or ValueError if it has none."""

    def update(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """Take the weights from a folder, under a name of their own; `previous` is the one before."""


class Vllm:
    """vLLM with whole models."""

    needs = (
        "vLLM 0.10.2 or later returns token ids; weights are updated by a later one (reload_weights with weights_path) "
        "started with VLLM_SERVER_DEV_MODE=1"
    )
    adapter = False

    def ask(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """See `Style.ask`. Nothing is left to the defaults of the model's generation config."""
        body = ({"model": model} if model else {}) | {
            "prompt": list(prompt), "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
            "seed": seed, "stop_token_ids": sorted(sampling.stop), "ignore_eos": True, "skip_special_tokens": False,
            "include_stop_str_in_output": True, "logprobs": 1, "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return Post("/v1/completions", body)

    def read(self, answer: Any) -> Sampled:
        """See `Style.read`. Servers before 0.10.2 name tokens by id in the log-probs."""
        choice = answer["choices"][0]
        logprobs = choice["logprobs"]
        ids = choice.get("token_ids")
        if ids is None:
            ids = [int(name.removeprefix("token_id:")) for name in logprobs["tokens"]]
        return Sampled([int(i) for i in ids], [float(p) for p in logprobs["token_logprobs"]])

    def update(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update`. What was cached under the old weights is dropped."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        return [Post("/collective_rpc", reload), Post("/reset_prefix_cache", {})]


class VllmLora(Vllm):
    """vLLM with a LoRA adapter, under a new name every time, so that nothing cached under the old one is used."""

    needs = "vLLM 0.10.2 or later, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    adapter = True

    def update(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update`."""
        posts = [Post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})]
        if previous is not None:
            posts.append(Post("/v1/unload_lora_adapter", {"lora_name": previous}))
        return posts


class Sglang:
    """SGLang with whole models. It follows seeds if it is started with --enable-deterministic-inference."""

    needs = "SGLang 0.4.6 or later"
    adapter = False

    def ask(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """See `Style.ask`."""
        params = {
            "temperature": sampling.temperature, "max_new_tokens": sampling.max_tokens, "top_p": 1.0, "top_k": -1,
            "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": sorted(sampling.stop), "ignore_eos": True,
            "skip_special_tokens": False, "no_stop_trim": True, "sampling_seed": seed,
        }  # fmt: skip
        return Post("/generate", {"input_ids": list(prompt), "sampling_params": params, "return_logprob": True})

    def read(self, answer: Any) -> Sampled:
        """See `Style.read`."""
        drawn = answer["meta_info"]["output_token_logprobs"]
        return Sampled([int(token) for _, token, *_ in drawn], [float(logprob) for logprob, *_ in drawn])

    def update(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update`."""
        return [Post("/update_weights_from_disk", {"model_path": folder, "flush_cache": True})]


STYLES: dict[str, Style] = {"vllm": Vllm(), "vllm-lora": VllmLora(), "sglang": Sglang()}


class ServerEngine:
    """Samples from a server. See `Engine` for its methods.

    Args:
        llm: the client.
        style: one of `STYLES`.
        model: name under which the server serves; empty for the only one.
        weights: folder that the server can read too; `update_weights` writes into it, and keeps the last two.
    """

    def __init__(self, llm: LLM, style: str, model: str = "", weights: Path | None = None) -> None:
        self.llm = llm
        self.style = style
        self._style = STYLES[style]
        self._root = llm.endpoint.base_url.removesuffix("/v1")
        self._weights = weights
        self._model = model
        self._talks: dict[int, list[int]] = {}
        self._opened = 0
        self._updates = 0
        self._run = secrets.token_hex(3)
        """In the names of weights: a server may still have those of an earlier run."""

    def open(self) -> int:
        """See `Engine.open`."""
        self._opened += 1
        self._talks[self._opened] = []
        return self._opened

    async def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Sampled:
        """See `Engine.reply`.

        Raises:
            CallFailed: no reply after all attempts.
            RlverError: the server cannot be used, or returns no token ids or no log-probs.
        """
        talk = self._talks[conversation]
        prompt = [*talk, *chunk]
        path, body = self._style.ask(self._model, prompt, seed % 2**31, sampling)
        sampled = await self.llm.post(self._root + path, body, self._read)
        talk[:] = [*prompt, *sampled.ids[:-1]]
        return sampled

    def rewind(self, conversation: int, length: int) -> None:
        """See `Engine.rewind`."""
        del self._talks[conversation][length:]

    def end(self, conversation: int) -> None:
        """See `Engine.end`."""
        del self._talks[conversation]

    async def update_weights(self, model: PreTrainedModel) -> None:
        """See `Engine.update_weights`. Writes safetensors, then tells the server where they are."""
        if self._weights is None:
            raise RlverError(f"{self.llm.endpoint.spec}: no folder for the weights is set; the server must read it.")
        name = self._name(self._updates + 1)
        folder = (self._weights / name).resolve()
        await asyncio.to_thread(self._write, model, folder)
        previous = self._name(self._updates) if self._updates else None
        for path, body in self._style.update(str(folder), name, previous):
            try:
                await self.llm.post(self._root + path, body, self._taken)
            except RlverError as error:
                raise RlverError(
                    f"{error} So the server has not taken the new weights from {folder}. It takes them if it can "
                    f"read that folder: {self._style.needs}."
                ) from None
        self._updates += 1
        if self._style.adapter:
            self._model = name
        kept = {self._name(self._updates), self._name(self._updates - 1)}
        for other in self._weights.glob("rlver-*"):  # of a process before this one, too
            if other.name not in kept:
                shutil.rmtree(other, ignore_errors=True)

    async def close(self) -> None:
        """See `Engine.close`."""
        await self.llm.close()

    def _name(self, update: int) -> str:
        return f"rlver-{self._run}-{update}"

    def _write(self, model: PreTrainedModel, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        wanted = "adapter_config.json" if self._style.adapter else "config.json"
        if not (folder / wanted).is_file():
            other = "vllm or sglang" if self._style.adapter else "vllm-lora"
            kind = "no adapter (LoRA)" if self._style.adapter else "an adapter (LoRA), no whole model"
            raise RlverError(f"engine {self.style}: what is trained is {kind}; use {other}.")

    def _read(self, answer: Any) -> Sampled:
        """The reply, or why this server is of no use: it answered, but not with what was asked for."""
        try:
            sampled = self._style.read(answer)
        except (LookupError, TypeError, ValueError) as error:
            if not isinstance(answer, Mapping) or not {"choices", "meta_info"} & answer.keys():
                raise
            raise self._useless(f"returned no token ids or log-probs ({error!r})") from None
        if not sampled.ids or len(sampled.ids) != len(sampled.logprobs):
            raise self._useless(f"returned {len(sampled.ids)} token ids and {len(sampled.logprobs)} log-probs")
        return sampled

    def _taken(self, answer: Any) -> None:
        """Some servers refuse with status 200."""
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise CallFailed(f"{self.llm.endpoint.spec}: {answer.get('message') or 'refused the weights'}.")

    def _useless(self, what: str) -> RlverError:
        return RlverError(f"{self.llm.endpoint.spec}: the server {what}. Needed: {self._style.needs}.")
