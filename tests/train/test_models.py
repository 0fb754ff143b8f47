"""Models in memory: what is loaded, what is kept, and that saving memory changes no number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import algos, fresh, gradient_of, lines, make, quick, save, weights_of

from rlver.core.errors import RlverError
from rlver.inference.model_folder import pick_device
from rlver.train.batch import Sample, collate, micro_batches
from rlver.train.config import ModelSettings, load_config
from rlver.train.forward import hidden_states, logprobs_and_entropies, piece_size, token_logprobs
from rlver.train.models.loading import checkpoint_gradients, dtype_for, four_bit, load_for_training
from rlver.train.models.optimizer import MasterAdamW, make_optimizer
from rlver.train.models.reference import Reference
from rlver.train.plan.live_bytes import LiveBytes
from rlver.train.runs.checkpoint import _optimizer_tensors, _restore_optimizer
from rlver.train.runs.training_run import run


def random_sample(length: int, trained: int, seed: int = 0) -> Sample:
    """A sample of random tokens, of which the last are trained."""
    at = torch.arange(length)
    ids = torch.randint(5, 200, (length,), generator=torch.Generator().manual_seed(seed))
    own = at[length - trained :]
    none, ends = torch.full((length,), -1), at + 1
    return Sample(ids, at, none, ends, own, own - 1, torch.zeros(trained, dtype=torch.long), torch.zeros(trained))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_model_is_loaded_in_the_numbers_asked_for(base: Path, dtype: Any) -> None:
    model, _ = load_for_training(base, ModelSettings(dtype=dtype))
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.device.type == "cpu" and all(parameter.requires_grad for parameter in model.parameters())
    on_gpu = dtype_for(ModelSettings(dtype=dtype), torch.device("cuda"))
    assert on_gpu == (torch.float32 if dtype == "float32" else torch.bfloat16)


def test_the_gpu_is_used_for_large_models(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").touch()
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(200 * 2**20)  # takes no room
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, device=None: empty(*sizes))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto", tmp_path).type == ("cuda" if there else "cpu")
        assert pick_device("auto", base).type == "cpu"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("quantize=4bit", "set lora, too"),
        ("attention=flash_attention_2", "must be 'sdpa'"),
        ("dtype=float16", "bfloat16"),
        ("lora=-1", "lora"),
    ],
)
def test_impossible_settings_are_reported(fails: Callable[..., str], base: Path, setting: str, message: str) -> None:
    assert message in fails("--policy", str(base), "--set", setting)


def test_missing_devices_are_reported(fails: Callable[..., str], base: Path) -> None:
    absent = "xpu" if torch.cuda.is_available() else "cuda"
    assert f"device {absent!r} cannot be used" in fails("--policy", str(base), "--set", f"device={absent}")
    assert "device 'gpu' cannot be used" in fails("--policy", str(base), "--set", "device=gpu")


def test_four_bits_need_a_gpu_and_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RlverError, match="needs an NVIDIA or AMD GPU"):
        four_bit(torch.device("cpu"), torch.float32)
    monkeypatch.setattr("rlver.train.models.loading.find_spec", lambda name: None)
    with pytest.raises(RlverError, match=r"pip install 'rlver\[4bit\]'"):
        four_bit(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_pieces_are_the_same_logits(words: Any, tied: bool) -> None:
    """Log-probs, entropies and all gradients, at every size of a piece; and fewer bytes at once."""
    model = fresh(words, tied=tied)
    batch = collate([random_sample(60, 45), random_sample(50, 30, 1)])
    found, peaks = [], []
    for size in (0, 1000, 75, 74, 7, 1):
        model.zero_grad()
        hidden = hidden_states(model, batch)
        with LiveBytes(model.parameters()) as live:
            logprobs, entropies = logprobs_and_entropies(model, hidden, batch.targets, 0.7, size)
            (logprobs * torch.linspace(-1, 1, 75) + 0.3 * entropies).sum().backward()
        assert torch.equal(logprobs, token_logprobs(model, hidden, batch.targets, 0.7, size))
        found.append(torch.cat([logprobs.detach(), entropies.detach(), gradient_of(model)]))
        peaks.append(live.peak)
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-6, atol=1e-6 * float(found[0].abs().max()))
    assert logprobs.dtype == torch.float32 and peaks[4] < 0.6 * peaks[0]
    assert piece_size(152_064, 0) == 441 and piece_size(152_064, 100) == 100


def test_gradient_checkpointing_changes_no_gradient(words: Any) -> None:
    batch = collate([random_sample(90, 60), random_sample(80, 20, 1)])
    found, peaks = [], []
    for forgetful in (False, True):
        model = fresh(words)
        if forgetful:
            checkpoint_gradients(model)
        model.train()
        with LiveBytes(model.parameters()) as live:
            hidden = hidden_states(model, batch)
            peaks.append(live.now)
            hidden.pow(2).sum().backward()
        found.append(gradient_of(model))
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-6 * float(found[0].abs().max()))
    assert peaks[1] < 0.4 * peaks[0]


@algos
def test_saving_memory_changes_no_run(base: Path, whole: dict[str, Path], tmp_path: Path, algo: str) -> None:
    """The same replies and the same learning as an ordinary run, but for rounding."""
    saving = {"gradient_checkpointing": True, "logit_tokens": 5, "offload_optimizer": True, "offload_reference": True}
    run(quick(base, algo, **saving), base, tmp_path / "saved")
    for one, other in zip(lines(tmp_path / "saved"), lines(whole[algo]), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    samples = (tmp_path / "saved" / "samples.jsonl").read_bytes()
    assert samples == (whole[algo] / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("offload", [False, True])
def test_master_copies_are_updated_as_adamw_does(offload: bool) -> None:
    """Bit by bit as PyTorch's own AdamW of the same kind; and its state is saved and restored as that one's."""
    torch.manual_seed(0)
    start = [torch.randn(40, 30), torch.randn(7)]
    mine, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    plain = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, fused=offload)
    master = MasterAdamW(mine, 1e-2, offload=offload)
    for step in range(6):
        if step == 3:  # through a checkpoint, into a new optimizer of weights that a checkpoint restored
            saved = _optimizer_tensors(master)
            assert {name.split(".")[1] for name in saved} == {"step", "exp_avg", "exp_avg_sq", "master"}
            master = MasterAdamW(mine, 1e-2, offload=offload)
            _restore_optimizer(master, saved)
        for optimizer, parameters in ((plain, theirs), (master, mine)):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * 7 + step)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    unfused = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    with pytest.raises(RuntimeError):
        _restore_optimizer(MasterAdamW([torch.nn.Parameter(torch.zeros(3, 3))], 1e-2), saved)
    assert isinstance(make_optimizer(unfused, 1e-2), torch.optim.AdamW)
    assert isinstance(make_optimizer(unfused, 1e-2, offload=True), MasterAdamW)


def test_small_steps_are_not_lost_in_sixteen_bits() -> None:
    """A thousandth of a thousandth of the weight, a thousand times: pure bfloat16 stays where it is."""
    moved = {}
    for kind in ("pure", "master"):
        weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
        pure = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
        optimizer = pure if kind == "pure" else make_optimizer([weight], 1e-5)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[kind] = 1 - float(weight.detach()[0])
    assert moved["pure"] == 0 and moved["master"] == pytest.approx(0.01, abs=0.004)


@algos
def test_training_in_bfloat16_learns_and_goes_on(base: Path, tmp_path: Path, algo: str) -> None:
    config = quick(base, algo, dtype="bfloat16")
    run(config, base, tmp_path / "whole")
    run(config.model_copy(update={"steps": 2}), base, tmp_path / "broken")
    run(config, base, tmp_path / "broken", resume=True)
    for name in ("metrics.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    start, trained = (load_for_training(tmp_path / "whole" / name, config)[0] for name in ("base", "policy"))
    assert trained.dtype == torch.bfloat16 and (weights_of(trained) != weights_of(start)).float().mean() > 0.3
    # Sampler and trainer round at different places.
    assert all(record["logprob_gap"] < 0.1 for record in lines(tmp_path / "whole"))


def test_without_kl_there_is_no_reference_model(speakers: Any, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    real = copy.deepcopy

    def count(thing: Any, *rest: Any) -> Any:
        copies.append(type(thing).__name__)
        return real(thing, *rest)

    monkeypatch.setattr("rlver.train.models.reference.copy.deepcopy", count)
    for kl, expected in ((0.1, 1), (0.0, 0)):
        trainer = make(speakers, words, kl=kl)
        copies.clear()
        trainer = type(trainer)(trainer.config, trainer.model, words, trainer.users)
        assert copies.count("Qwen2ForCausalLM") == expected
        metrics, _ = trainer.step(0)
        assert ("kl" in metrics) == (trainer.reference is not None) == bool(kl)


def test_a_reference_waits_on_the_cpu_and_answers_as_the_start(words: Any) -> None:
    model, batch = fresh(words), collate([random_sample(30, 20)])
    with torch.no_grad():
        before = token_logprobs(model, hidden_states(model, batch), batch.targets, 0.7)
    reference = Reference(model, 0.7, offload=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    with reference.on_device():
        assert torch.equal(reference(batch), before)
    # Where the policy lies elsewhere, the copy follows it only while it works.
    reference._device = torch.device("meta")
    moves: list[torch.device] = []
    reference.model.to = lambda device: moves.append(device)  # type: ignore[assignment]
    with reference.on_device():
        assert moves == [torch.device("meta")]
    assert reference.model.device.type == "cpu"


def test_micro_batches_keep_the_budget_longest_first_with_little_padding() -> None:
    lengths = torch.randint(150, 935, (48,), generator=torch.Generator().manual_seed(3)).tolist()
    samples = [random_sample(length, 5) for length in lengths]
    parts = list(micro_batches(samples, 4096))
    assert sorted(i for part in parts for i in part) == list(range(48))
    longest = [max(lengths[i] for i in part) for part in parts]
    assert longest == sorted(longest, reverse=True) and longest[0] == max(lengths)
    padded = [top * len(part) for top, part in zip(longest, parts, strict=True)]
    assert max(padded) <= 4096
    assert sum(lengths) > 0.9 * sum(padded)
    # A group is closed only if the next dialogue would break the budget.
    for top, part in zip(longest[:-1], parts[:-1], strict=True):
        assert top * (len(part) + 1) > 4096
    assert [len(part) for part in micro_batches(samples, 100)] == [1] * 48


def test_memory_settings_are_settings(tmp_path: Path) -> None:
    config = load_config(None, ["lora=16", "lora_targets=[q_proj, v_proj]", "quantize=4bit", "device_memory_gb=24"], {})
    assert config.lora_targets == ["q_proj", "v_proj"] and config.device_memory_gb == 24
    defaults = load_config(None, [], {})
    assert (defaults.lora, defaults.quantize, defaults.gradient_checkpointing) == (0, "none", False)
    assert (defaults.offload_optimizer, defaults.dtype, defaults.device) == (False, "auto", "auto")


def test_a_folder_is_saved_and_loaded_in_place(words: Any, tmp_path: Path) -> None:
    """Loading touches nothing: the numbers are those that were saved."""
    model = fresh(words)
    loaded, _ = load_for_training(save(words, model, tmp_path), ModelSettings())
    assert torch.equal(weights_of(loaded), weights_of(model))
