"""The benchmarks of training: that every side does the same work, that the floor is right, and that they run."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from engine_toys import records, sampled_ids
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent.parent / "benchmarks"
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def sides() -> ModuleType:
    return importlib.import_module("sides")


@pytest.fixture
def setting(sides: ModuleType) -> Any:
    return sides.Setting(hidden=64, dialogues=8, turns=3, tokens=5, said=6, micro=4)


def test_ours_and_the_floor_encode_and_train_the_same_number_of_tokens(sides: ModuleType, setting: Any) -> None:
    encoded, counts = [], []
    ours, floor = sides.Ours(replace(setting, kl=0.05)), sides.Floor(replace(setting, kl=0.05))
    for side, model in ((ours, ours.trainer.model), (floor, floor.model)):
        passed = [0, 0]

        def note(_: Any, ids: Any, out: Any, to: list[int] = passed) -> None:
            to[torch.is_grad_enabled()] += ids[0].numel()

        model.get_input_embeddings().register_forward_hook(note)
        side.step()
        encoded.append(passed)
        counts.append(side.count())
    assert counts[0] == counts[1] and counts[0].sampled == 8 * 3 * 5
    # Update: every token once. Rollout: the last one sampled is never fed back. Ours encodes once what dialogues begin
    # with, the system prompt and the opening of a group: less than the floor does, and by no more than that.
    rollout = counts[0].passed - 8
    opening = max(len(records(dialogue)[0].prompt_ids) for dialogue in ours.dialogues)
    assert encoded[1] == [rollout, counts[0].passed]
    for done, all_of_it in zip(encoded[0], encoded[1], strict=True):
        assert all_of_it - 7 * opening <= done < all_of_it


def test_lines_are_as_long_and_each_profile_has_its_own(sides: ModuleType, setting: Any) -> None:
    user, lines = sides.Patient(6), set()
    for profile in sides.profiles_of(replace(setting, dialogues=32)):
        lines.add(user.line(profile))
        assert len(sides.make_chat().text(user.line(profile))) == 6
    assert len(lines) == 8


def test_no_reply_closes_early_and_rewards_differ(sides: ModuleType, setting: Any) -> None:
    metrics, dialogues = sides.Ours(setting).trainer.step(0)
    assert all(len(dialogue.turns) == 3 for dialogue in dialogues) and metrics["zero_variance_groups"] == 0
    marks = set(sides.make_tokenizer().all_special_ids)
    assert not marks & {token for replies in sampled_ids(dialogues) for ids in replies for token in ids}


def test_the_floor_decodes_what_a_plain_forward_pass_says(sides: ModuleType, setting: Any) -> None:
    floor = sides.Floor(setting)
    seen: list[Tensor] = []
    hook = floor.model.get_output_embeddings().register_forward_hook(lambda _, hidden, logits: seen.append(logits))
    floor.decode()
    hook.remove()
    with torch.no_grad():
        logits = floor.model(floor.ids, use_cache=False).logits[:, floor.at - 1]
    assert torch.allclose(torch.stack(seen, 1), logits, atol=1e-4)
    assert not torch.isin(floor.ids[:, floor.at], torch.tensor(sides.make_tokenizer().all_special_ids)).any()
    assert len(floor.ids.unique(dim=0)) == setting.dialogues


@pytest.mark.parametrize("keep", [True, False], ids=["cache kept", "encoding again"])
def test_generate_plays_the_same_dialogues_and_marks_what_it_sampled(
    sides: ModuleType, setting: Any, keep: bool
) -> None:
    played = sides.play_with_generate(sides.make_model(setting), setting, 2 * sides.profiles_of(setting)[:1], keep)
    plan = sides.Floor.plan(setting)
    for prompt, completion, mask in zip(played.prompts, played.completions, played.masks, strict=True):
        whole = [0] * len(prompt) + mask
        starts = [i for i in range(1, len(whole)) if whole[i] > whole[i - 1]]
        assert starts == plan.starts and sum(whole) == setting.turns * setting.tokens
        assert len(prompt + completion) == len(whole) == len(plan.ids)


def test_a_fit_distinguishes_a_line_from_a_curve() -> None:
    fit = importlib.import_module("vs_trl").fit
    assert fit([(1, 3.0), (2, 5.0), (4, 9.0)]) == pytest.approx((2.0, 1.0, 1.0))
    assert fit([(x, float(x**3)) for x in range(9)])[2] < 0.95


def _quick(folder: Path, *arguments: str) -> dict[str, Any]:
    importlib.import_module("vs_trl").main(["--quick", "--kl", "0.05", "--out", str(folder), *arguments])
    assert (folder / "vs_trl.png").stat().st_size > 1000
    return dict(json.loads((folder / "vs_trl.json").read_text(encoding="utf-8")))


def test_ours_and_the_floor_are_compared_without_trl(tmp_path: Path) -> None:
    (found,) = _quick(tmp_path, "--no-trl")["comparisons"].values()
    assert set(found["wall"]) == {"ours", "floor"} and min(found["parts"]["reference"]) > 0
    table = (tmp_path / "vs_trl.md").read_text(encoding="utf-8")
    assert "ours / floor (decode + update)" in table and "not measured" in table and "ours / trl" not in table
    # Another run adds to what is there.
    again = _quick(tmp_path, "--no-trl", "--no-scaling", "--threads", "2")
    assert len(again["comparisons"]) == 2 and "scaling" in again


@needs_trl
def test_trl_is_compared_on_the_same_tokens(tmp_path: Path) -> None:
    (found,) = _quick(tmp_path)["comparisons"].values()
    assert set(found["wall"]) == {"ours", "floor", "trl, cache kept", "trl, encoding again"}
    assert found["counts"]["sampled"] == 8 * 2 * 6
    assert "ours / trl" in (tmp_path / "vs_trl.md").read_text(encoding="utf-8")


def test_the_gpu_benchmark_runs_on_a_cpu_and_invents_nothing(tmp_path: Path) -> None:
    gpu, out = importlib.import_module("gpu"), tmp_path / "gpu.md"
    gpu.main(["--device", "cpu", "--shapes", "tiny", "--kinds", "full", "--steps", "1", "--out", str(out)])
    rows = [line.split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row[2][0].isdigit() for row in rows if row[:2] == ["| tiny", "full"]] == [True, True]
    assert all("not measured" in row[2] for row in rows if row[0] in ("| 0.5B", "| 1.5B", "| 7B"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_what_to_do_without_a_gpu() -> None:
    with pytest.raises(SystemExit, match="--device cpu --shapes tiny"):
        importlib.import_module("gpu").main(["--shapes", "0.5B"])


def test_the_work_of_an_update_is_what_a_counter_counts(sides: ModuleType, setting: Any) -> None:
    gpu, floor = importlib.import_module("gpu"), sides.Floor(setting)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        floor.update([])
    counts = floor.count()
    operations = gpu.work(floor.model, "full", setting, counts.passed, counts.trained)
    assert operations == pytest.approx(counter.get_total_flops(), rel=0.1)
