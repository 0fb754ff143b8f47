"""Samples from a server that takes and returns token ids: vLLM or SGLang.

The engine keeps a conversation as ids and sends all of it every time; the server caches prefixes. Weights reach the
server through a folder that both can read: the engine writes them after every update and names the folder in a request.

Log-probabilities are those that the server reports. vLLM reports them before the temperature is applied, unless it is
started with `--logprobs-mode processed_logprobs`. SGLang reports them after the temperature is applied, unless
SGLANG_RETURN_ORIGINAL_LOGPROB is set.
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
    """A POST request: path from the server's root, and JSON body."""

    path: str
    body: Mapping[str, Any]


class Style(Protocol):
    """The requests and answers of one kind of server."""

    requirement: str
    """Version of the server and the options that it must be started with, in words."""
    adapter: bool
    """Whether it loads adapters (LoRA) instead of whole models."""

    def reply_request(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """The request for one reply.

        Args:
            model: name of the model; empty for the only one that the server serves.
        """

    def read(self, answer: Any) -> Sampled:
        """The reply in an answer.

        Raises:
            LookupError, TypeError, ValueError: the answer holds no reply.
        """

    def update_requests(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """The requests that load weights from a folder.

        Args:
            name: a new name for these weights.
            previous: name of the weights before them, if any.
        """


class Vllm:
    """vLLM with whole models."""

    requirement = (
        "vLLM 0.10.2 or later returns token ids; weights are updated by a later one (reload_weights with weights_path) "
        "started with VLLM_SERVER_DEV_MODE=1"
    )
    adapter = False

    def reply_request(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """See `Style.reply_request`. Every setting is given, so the model's generation config has no effect."""
        body = ({"model": model} if model else {}) | {
            "prompt": list(prompt), "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
            "seed": seed, "stop_token_ids": sorted(sampling.stop), "ignore_eos": True, "skip_special_tokens": False,
            "include_stop_str_in_output": True, "logprobs": 1, "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return Post("/v1/completions", body)

    def read(self, answer: Any) -> Sampled:
        """See `Style.read`. Servers before 0.10.2 give the ids as names of the tokens in the log-probabilities."""
        choice = answer["choices"][0]
        logprobs = choice["logprobs"]
        ids = choice.get("token_ids")
        if ids is None:
            ids = [int(name.removeprefix("token_id:")) for name in logprobs["tokens"]]
        return Sampled([int(i) for i in ids], [float(p) for p in logprobs["token_logprobs"]])

    def update_requests(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update_requests`. The server drops what it cached under the old weights."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        return [Post("/collective_rpc", reload), Post("/reset_prefix_cache", {})]


class VllmLora(Vllm):
    """vLLM with a LoRA adapter. Every update gets a new name, so that no cache of the old weights is used."""

    requirement = "vLLM 0.10.2 or later, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    adapter = True

    def update_requests(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update_requests`."""
        posts = [Post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})]
        if previous is not None:
            posts.append(Post("/v1/unload_lora_adapter", {"lora_name": previous}))
        return posts


class Sglang:
    """SGLang with whole models. It obeys seeds only if it is started with --enable-deterministic-inference."""

    requirement = "SGLang 0.4.6 or later"
    adapter = False

    def reply_request(self, model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Post:
        """See `Style.reply_request`."""
        params = {
            "temperature": sampling.temperature, "max_new_tokens": sampling.max_tokens, "top_p": 1.0, "top_k": -1,
            "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": sorted(sampling.stop), "ignore_eos": True,
            "skip_special_tokens": False, "no_stop_trim": True, "sampling_seed": seed,
        }  # fmt: skip
        return Post("/generate", {"input_ids": list(prompt), "sampling_params": params, "return_logprob": True})

    def read(self, answer: Any) -> Sampled:
        """See `Style.read`."""
        tokens = answer["meta_info"]["output_token_logprobs"]
        return Sampled([int(token) for _, token, *_ in tokens], [float(logprob) for logprob, *_ in tokens])

    def update_requests(self, folder: str, name: str, previous: str | None) -> list[Post]:
        """See `Style.update_requests`."""
        return [Post("/update_weights_from_disk", {"model_path": folder, "flush_cache": True})]


STYLES: dict[str, Style] = {"vllm": Vllm(), "vllm-lora": VllmLora(), "sglang": Sglang()}


class ServerEngine:
    """Samples from a server. See `Engine` for its methods.

    Args:
        llm: client of the server.
        style: one of `STYLES`.
        model: name of the model on the server; empty for the only one that it serves.
        weights: folder that the server can read too. `update_weights` writes into it and keeps the last two versions.
    """

    def __init__(self, llm: LLM, style: str, model: str = "", weights: Path | None = None) -> None:
        self.llm = llm
        self.style = style
        self._style = STYLES[style]
        self._root = llm.endpoint.base_url.removesuffix("/v1")
        self._weights = weights
        self._model = model
        self._conversations: dict[int, list[int]] = {}
        self._opened = 0
        self._updates = 0
        self._run = secrets.token_hex(3)
        """Part of the names of weights, because a server may still hold those of an earlier run."""

    def open(self) -> int:
        """See `Engine.open`."""
        self._opened += 1
        self._conversations[self._opened] = []
        return self._opened

    async def reply(self, conversation: int, chunk: Sequence[int], seed: int, sampling: Sampling) -> Sampled:
        """See `Engine.reply`.

        Raises:
            CallFailed: no reply after all attempts.
            RlverError: the server cannot be used, or returns no token ids or no log-probabilities.
        """
        context = self._conversations[conversation]
        prompt = [*context, *chunk]
        path, body = self._style.reply_request(self._model, prompt, seed % 2**31, sampling)
        sampled = await self.llm.post(self._root + path, body, self._read)
        context[:] = [*prompt, *sampled.ids[:-1]]
        return sampled

    def rewind(self, conversation: int, length: int) -> None:
        """See `Engine.rewind`."""
        del self._conversations[conversation][length:]

    def end(self, conversation: int) -> None:
        """See `Engine.end`."""
        del self._conversations[conversation]

    async def update_weights(self, model: PreTrainedModel) -> None:
        """See `Engine.update_weights`. Writes safetensors, then tells the server where they are."""
        if self._weights is None:
            raise RlverError(f"{self.llm.endpoint.spec}: no folder for the weights is set that the server can read.")
        name = self._name(self._updates + 1)
        folder = (self._weights / name).resolve()
        await asyncio.to_thread(self._write, model, folder)
        previous = self._name(self._updates) if self._updates else None
        for path, body in self._style.update_requests(str(folder), name, previous):
            try:
                await self.llm.post(self._root + path, body, self._check_update)
            except RlverError as error:
                raise RlverError(
                    f"{error} So the server has not loaded the new weights from {folder}. It must be able to read that "
                    f"folder: {self._style.requirement}."
                ) from None
        self._updates += 1
        if self._style.adapter:
            self._model = name
        latest = {self._name(self._updates), self._name(self._updates - 1)}
        for version in self._weights.glob("rlver-*"):  # including those of earlier processes
            if version.name not in latest:
                shutil.rmtree(version, ignore_errors=True)

    async def close(self) -> None:
        """See `Engine.close`."""
        await self.llm.close()

    def _name(self, update: int) -> str:
        return f"rlver-{self._run}-{update}"

    def _write(self, model: PreTrainedModel, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        file = "adapter_config.json" if self._style.adapter else "config.json"
        if not (folder / file).is_file():
            trained = "the trained model has no adapter (LoRA); use vllm or sglang"
            if not self._style.adapter:
                trained = "the trained weights are an adapter (LoRA), not a whole model; use vllm-lora"
            raise RlverError(f"engine {self.style}: {trained}.")

    def _read(self, answer: Any) -> Sampled:
        """The reply in an answer.

        Raises:
            RlverError: the server answered without token ids or log-probabilities, so it cannot be used.
        """
        try:
            sampled = self._style.read(answer)
        except (LookupError, TypeError, ValueError) as error:
            if not isinstance(answer, Mapping) or not {"choices", "meta_info"} & answer.keys():
                raise
            raise self._unusable(f"returned no token ids or log-probabilities ({error!r})") from None
        if not sampled.ids or len(sampled.ids) != len(sampled.logprobs):
            raise self._unusable(f"returned {len(sampled.ids)} token ids and {len(sampled.logprobs)} log-probabilities")
        return sampled

    def _check_update(self, answer: Any) -> None:
        """Raises CallFailed if a server refused the weights, which some do with status 200."""
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise CallFailed(f"{self.llm.endpoint.spec}: {answer.get('message') or 'refused the weights'}.")

    def _unusable(self, problem: str) -> RlverError:
        return RlverError(f"{self.llm.endpoint.spec}: the server {problem}. Needed: {self._style.requirement}.")
