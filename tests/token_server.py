"""A server on loopback that speaks as vLLM or SGLang do: token ids in and out, sampled by a real small model.

It loads weights from folders when told to, caches as those do (what was cached under old weights stays until it is
dropped), and injects faults.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import torch
from fake_server import FakeServer, _send, _send_raw
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


class TokenServer(FakeServer):
    """Use it in a `with` statement. `faults` may also hold "no_ids", "no_logprobs" and "unequal"."""

    def __init__(self, lm: Any, **options: Any) -> None:
        super().__init__(**options)
        self.served = {"": lm}
        self.locked = False
        """Whether weights may not be updated, as with a server that was not started for it."""
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self._cached: Any = None

    async def _answer(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        request = json.loads(body)
        self.posts.append((path, request))
        if path not in ("/v1/completions", "/generate"):
            return self._update(path, request, writer)
        fault = self._random.choice(self.faults) if self._random.random() < self.share else "ok"
        self.calls[fault] += 1
        if fault == "500":
            return _send(writer, 500, {"error": {"message": "something broke"}})
        if fault == "drop":
            return False
        answer = self._completion(request) if path == "/v1/completions" else self._generate(request)
        if fault != "ok":
            spoil(answer, fault)
        return _send(writer, 200, answer)

    def _completion(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["ignore_eos"] and not request["skip_special_tokens"] and request["repetition_penalty"] == 1
        lm = self.served[request.get("model", "")]
        if not request.get("model"):  # one cache for the base model, which outlives its weights
            lm = self._cached = self._cached or lm
        ids, logprobs = sample(lm, request["prompt"], request)
        names = [f"token_id:{i}" for i in ids]
        choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": ids}
        return {"choices": [choice | {"logprobs": {"tokens": names, "token_logprobs": logprobs}}]}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["return_logprob"]
        params = request["sampling_params"]
        named = params | {"max_tokens": params["max_new_tokens"], "seed": params["sampling_seed"]}
        ids, logprobs = sample(self.served[""], request["input_ids"], named)
        drawn = [[p, i, None] for p, i in zip(logprobs, ids, strict=True)]
        return {"text": "", "output_ids": ids, "meta_info": {"output_token_logprobs": drawn}}

    def _update(self, path: str, request: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if self.locked and path == "/update_weights_from_disk":
            return _send(writer, 200, {"success": False, "message": "no such folder"})
        if self.locked:
            return _send(writer, 404, {"detail": "Not Found"})
        if path == "/v1/load_lora_adapter":
            assert request["lora_name"] not in self.served
            self.served[request["lora_name"]] = load(request["lora_path"])
        elif path == "/v1/unload_lora_adapter":
            del self.served[request["lora_name"]]
        elif path == "/collective_rpc" and request["method"] == "reload_weights":
            self.served[""] = load(request["kwargs"]["weights_path"])
        elif path == "/reset_prefix_cache":
            self._cached = None
        elif path == "/update_weights_from_disk":
            self.served[""] = load(request["model_path"])
            return _send(writer, 200, {"success": True, "message": "Succeeded."})
        else:
            return _send(writer, 404, {"detail": "Not Found"})
        return _send_raw(writer, 200, b"Success", "text/plain")


def load(folder: str) -> Any:
    """The model in a folder, by hand: an adapter's config beside it is none of `transformers`' business here."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def sample(lm: Any, prompt: list[int], request: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Token by token, without a cache."""
    generator = torch.Generator().manual_seed(request["seed"])
    ids: list[int] = []
    logprobs: list[float] = []
    while len(ids) < request["max_tokens"] and not set(ids[-1:]) & set(request["stop_token_ids"]):
        logits = lm(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        scores = torch.log_softmax(logits / request["temperature"], -1)
        ids.append(int(torch.multinomial(scores.exp(), 1, generator=generator)))
        logprobs.append(float(scores[ids[-1]]))
    return ids, logprobs


def spoil(answer: dict[str, Any], fault: str) -> None:
    """Answer as a server does that knows less."""
    if "meta_info" in answer:
        answer["meta_info"] = {}
    elif fault == "no_ids":
        del answer["choices"][0]["token_ids"]
        answer["choices"][0]["logprobs"]["tokens"] = ["words"]
    elif fault == "no_logprobs":
        answer["choices"][0]["logprobs"] = None
    else:
        answer["choices"][0]["logprobs"]["token_logprobs"].pop()
