"""How fast and how large training is on a GPU: Qwen2.5 shapes with random weights, all weights or LoRA, in bf16.

    python benchmarks/gpu.py                              # 0.5B, 1.5B and 7B, full and LoRA, in under nine minutes
    python benchmarks/gpu.py --device cpu --shapes tiny   # the same code on a CPU, as a smoke test

Nothing is downloaded: the models are made from their published shapes, and what a step costs does not depend on what
the weights say. Every row runs in a process of its own. For each: tokens sampled a second by our rollout and by
`generate` with its cache kept from turn to turn (the same dialogues, users and lengths); tokens a second of the update
and its share of the bf16 matrix rate measured on the same device; the time of a whole step; and the peak memory.

The update's work is counted by formula, whatever is computed twice: two operations per weight and token forward, twice
as many backward (as many with LoRA, whose base gets no gradient), logits at sampled tokens alone, causal attention.
On a CPU without bf16 the matrix rate is that of an emulation, and the share of it says nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sides import Ours, Setting, make_model, peak_memory, play_with_generate, profiles_of

from rlver.train.config import TrainConfig

KINDS = ("full", "lora")
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
SHAPES["tiny"] |= {"num_key_value_heads": 1, "vocab_size": 3072, "tie_word_embeddings": True}
SHAPES["0.5B"] |= {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES["1.5B"] |= {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES["7B"] |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
"""Of Qwen2.5's published configs; `tiny` is ours."""
LARGE = Setting(dialogues=64, turns=3, tokens=64, said=64, micro=8)
SMALL = Setting(dialogues=8, turns=2, tokens=8, said=8, micro=4)
MICRO = {"0.5B": 32, "1.5B": 16, "7B": 4}
"""Dialogues of a micro-batch on a GPU: as many as fit beside weights, gradients and optimizer state."""
RANK = 16


@dataclass
class Row:
    """What was measured of one shape. Rates are per second."""

    sampled_rate: float
    generate_rate: float
    trained_rate: float
    """Tokens of the sequences that the update ran over."""
    flops: float
    """Operations a second of the update."""
    matrix_flops: float
    """Operations a second of a large matrix product in bf16."""
    step_s: float
    peak_gb: float
    """GB (10**9 bytes): of the GPU's memory, or of the process's on a CPU."""
    device: str


def measure(shape: str, kind: str, setting: Setting, device: str, steps: int) -> Row:
    """Measure one row in this process.

    Raises:
        RuntimeError: LoRA is not available, or the device has too little memory.
    """
    model, extra = prepare(shape, kind, setting, device)
    side = Ours(setting, model, **extra)
    side.trainer._timed = synchronised(side.trainer._timed, device)  # type: ignore[method-assign]
    spent: dict[str, list[float]] = {"rollout": [], "update": []}
    whole: list[float] = []
    step = timed(side.step, whole, device)
    for _ in range(1 + steps):
        step()
        for phase, times in spent.items():
            times.append(side.trainer.seconds[phase])
    peak = peak_bytes(device)  # before `generate`, which is no part of a step
    counts, generated = side.count(), []
    profiles = [p for p in profiles_of(setting) for _ in range(setting.group)]
    model.eval()
    # A warm-up: the first call sets things up.
    play_with_generate(model, replace(setting, turns=1, tokens=4), profiles, keep=True)
    timed(lambda: play_with_generate(model, setting, profiles, keep=True), generated, device)()
    rollout, update, step_s = (median(times[1:]) for times in (spent["rollout"], spent["update"], whole))
    return Row(
        sampled_rate=counts.sampled / rollout,
        generate_rate=counts.sampled / generated[0],
        trained_rate=counts.passed / update,
        flops=work(model, kind, setting, counts.passed, counts.trained) / update,
        matrix_flops=matrix_rate(device),
        step_s=step_s,
        peak_gb=peak / 1e9,
        device=torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
    )


def prepare(shape: str, kind: str, setting: Setting, device: str) -> tuple[Any, dict[str, Any]]:
    """The model as it is trained, and the settings of the trainer that it needs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = make_model(setting, **SHAPES[shape])
    finally:
        torch.set_default_dtype(before)
    known = TrainConfig.model_fields
    wanted: dict[str, Any] = {"device": device, "dtype": "bfloat16"}
    if kind == "lora":
        if "lora" not in known or find_spec("peft") is None:
            raise RuntimeError("this version or installation has no LoRA")
        from rlver.train.models.adapters import add_adapter, lora_config

        wanted["lora"] = RANK
        add_adapter(model, lora_config(TrainConfig(lora=RANK)), shape)
    elif shape == "7B":
        # Weights and gradients in bf16 take 30 GB; what the optimizer keeps in float32 would take 91 more.
        wanted["offload_optimizer"] = True
    return model, {key: value for key, value in wanted.items() if key in known}


def wait(device: str) -> None:
    """Wait until a GPU has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[..., Any], times: list[float], device: str) -> Callable[..., Any]:
    """The same call, which leaves its seconds in `times`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wait(device)
        start = time.perf_counter()
        result = call(*args, **kwargs)
        wait(device)
        times.append(time.perf_counter() - start)
        return result

    return wrapped


def synchronised(
    measure: Callable[[str], AbstractContextManager[None]], device: str
) -> Callable[[str], AbstractContextManager[None]]:
    """The trainer's measurement of a phase, which also waits for the device at the beginning and at the end."""

    @contextmanager
    def wrapped(phase: str) -> Iterator[None]:
        wait(device)
        with measure(phase):
            yield
            wait(device)

    return wrapped


def work(model: Any, kind: str, setting: Setting, passed: int, trained: int) -> float:
    """Operations of one update, by the formula above."""
    config = model.config
    body = sum(
        p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )
    length = passed / setting.dialogues
    attention = 2 * length * config.hidden_size * config.num_hidden_layers
    forward = passed * (2 * body + attention) + trained * 2 * config.hidden_size * config.vocab_size
    return forward * (3 if kind == "full" else 2)


def matrix_rate(device: str) -> float:
    """Operations a second of a square matrix product in bf16: the best of several."""
    size = 8192 if device == "cuda" else 512
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times: list[float] = []
    multiply = timed(lambda: matrix @ matrix, times, device)
    for _ in range(12):
        multiply()
    return 2 * size**3 / min(times)


def peak_bytes(device: str) -> float:
    """Peak memory in bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return peak_memory()


def setting_of(shape: str, device: str) -> Setting:
    """The dialogues of a row."""
    return replace(LARGE, micro=MICRO.get(shape, LARGE.micro)) if device == "cuda" else SMALL


def run_row(shape: str, kind: str, options: argparse.Namespace, seconds: float) -> Row | str:
    """Measure one row in a process of its own, within some seconds. Returns the reason if it fails."""
    if seconds < 20:
        return "not measured: time was up"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--device", options.device, "--steps", str(options.steps)]
        try:
            done = subprocess.run(
                [*command, "--row", f"{shape}:{kind}", "--out", str(out)],
                stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "not measured: time was up"
        if not done.returncode:
            # A model that samples without graphs says so.
            print(*(line for line in done.stderr.splitlines() if "Warning" in line), sep="\n", file=sys.stderr)
            return Row(**json.loads(out.read_text(encoding="utf-8")))
    last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    return "out of memory" if "OutOfMemory" in last else f"not measured: {last.split(': ', 1)[-1][:120]}"


def table_lines(rows: dict[tuple[str, str], Row | str]) -> Iterator[str]:
    """The table, as Markdown. Rows that did not run say so."""
    yield "| model | trained | rollout, tokens/s | `generate`, tokens/s | update, tokens/s | share of the matrix rate |"
    yield "|---|---|---|---|---|---|"
    second_table = [
        "| model | trained | step, s | peak memory, GB | bf16 matrix rate, TFLOP/s | device |",
        "|---|---|---|---|---|---|",
    ]
    for (shape, kind), row in rows.items():
        if isinstance(row, str):
            yield f"| {shape} | {kind} | {row} | | | |"
            second_table.append(f"| {shape} | {kind} | {row} | | | |")
            continue
        times, share = row.sampled_rate / row.generate_rate, row.flops / row.matrix_flops
        shown = f"{100 * share:.0f} %" if share <= 1 else "none: bf16 is emulated"
        yield (
            f"| {shape} | {kind} | {row.sampled_rate:,.0f} ({times:.2f} x) | {row.generate_rate:,.0f} | "
            f"{row.trained_rate:,.0f} | {shown} |"
        )
        rate = row.matrix_flops / 1e12
        second_table.append(f"| {shape} | {kind} | {row.step_s:.2f} | {row.peak_gb:.2f} | {rate:.3g} | {row.device} |")
    yield ""
    yield from second_table


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["0.5B", "1.5B", "7B"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=2, help="steps that count, after one that does not (default: 2)")
    parser.add_argument("--minutes", type=float, default=8.5, help="time limit for all rows (default: 8.5)")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        shape, kind = options.row.split(":")
        setting = replace(setting_of(shape, options.device), threads=max(1, torch.get_num_threads()))
        row = measure(shape, kind, setting, options.device, options.steps)
        options.out.write_text(json.dumps(asdict(row)), encoding="utf-8")
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("Error: PyTorch sees no GPU here; --device cpu --shapes tiny tries the benchmark itself.")
    end = time.monotonic() + 60 * options.minutes
    rows: dict[tuple[str, str], Row | str] = {}
    for shape in options.shapes:
        for kind in options.kinds:
            print(f"{shape}, {kind} ...", file=sys.stderr, flush=True)
            rows[shape, kind] = run_row(shape, kind, options, end - time.monotonic())
    setting = setting_of(options.shapes[0], options.device)
    micro = ", ".join(f"{setting_of(shape, options.device).micro} for {shape}" for shape in options.shapes)
    given = f"--device {options.device} --shapes {' '.join(options.shapes)} --kinds {' '.join(options.kinds)}"
    head = (
        f"`python benchmarks/gpu.py {given} --steps {options.steps}`: {setting.dialogues} dialogues x "
        f"{setting.turns} turns x {setting.tokens} tokens (the user's lines: {setting.said}), micro-batches of "
        f"{micro}, LoRA of rank {RANK}; torch {torch.__version__}, transformers {version('transformers')}.\n"
    )
    table = "\n".join([head, *table_lines(rows)]) + "\n"
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"# Training on a GPU\n\n{table}", encoding="utf-8")
    if not any(isinstance(row, Row) for row in rows.values()):
        sys.exit("Error: nothing could be measured; the table says why.")


if __name__ == "__main__":
    main()
