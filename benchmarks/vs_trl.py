"""Our GRPO step beside that of TRL's GRPOTrainer (`rollout_func`), and both beside a floor, in one process.

    pip install -e '.[bench]'
    python benchmarks/vs_trl.py            # both sizes, memory, scaling; writes benchmarks/results/vs_trl.{md,png,json}
    python benchmarks/vs_trl.py --quick    # a minute's smoke test of the same code; writes nothing

Each result is written as soon as it is measured. Results of earlier runs stay until they are measured again.

Both train the same Qwen2 model with random weights in fp32, on the same dialogues with the same user, which answers at
once and never leaves: the same number of dialogues, turns and tokens, one update per step, the same micro-batches, the
same optimizer. No reply ends early, because the model never samples a special token. The sides take turns, one step
each, so that other load on the machine affects all of them equally.

The floor is the least that such a step can cost: a bare loop of the decoder's forward passes with a static cache that
samples the same tokens in lockstep, and a bare forward-backward pass with the optimizer's step over the same tokens,
with logits at the sampled tokens alone. It has no user, no text, no truncation and no bookkeeping.

If TRL is not installed, only our step and the floor are measured.
"""

from __future__ import annotations

import os

# Before torch is imported: idle threads that spin would slow other processes on the same cores, and each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from sides import Counts, Floor, Ours, Rollout, Setting, make_line, peak_memory, trl_trainer

RESULTS = Path(__file__).parent / "results"
TARGET_TRL, TARGET_FLOOR = 0.6, 1.3
Points = list[tuple[int, float]]
"""A size and the seconds that it took."""


@dataclass
class Clock:
    """Wall and processor seconds of the steps of a side, in order."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], None]) -> None:
        """Do one step and record its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        self.add(time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, wall: float, cpu: float) -> None:
        """Record the time of a step."""
        self.wall.append(wall)
        self.cpu.append(cpu)

    def without_warmup(self, warmup: int) -> Clock:
        """The times without those of the first steps."""
        return Clock(self.wall[warmup:], self.cpu[warmup:])


def have_trl() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


def compare(setting: Setting, rounds: int, warmup: int, trl: bool) -> dict[str, Any]:
    """Let the sides take turns, one step each. Returns the times of all sides."""
    torch.set_num_threads(setting.threads)
    ours, floor = Ours(setting), Floor(setting)
    clocks = {"ours": Clock(), "floor": Clock()}
    parts: dict[str, list[float]] = {"decode": [], "reference": [], "update": []}
    counts: dict[str, Counts] = {}

    def step_ours_and_floor() -> None:
        clocks["ours"].time(ours.step)
        clocks["floor"].time(floor.step)
        for name, seconds in floor.seconds.items():
            parts[name].append(seconds)
        counts.update(ours=ours.count(), floor=floor.count())

    if trl:
        kinds = {"trl, cache kept": True, "trl, encoding again": False}
        clocks |= {name: Clock() for name in kinds}
        parts |= {name: [] for name in kinds}
        rollout, turn = Rollout(setting, True), [0]

        def between(wall: float, cpu: float) -> None:
            name = list(kinds)[turn[0] % 2]
            clocks[name].add(wall, cpu)
            parts[name].append(rollout.seconds)
            counts[name] = replace(rollout.counts)
            turn[0] += 1
            rollout.keep = list(kinds.values())[turn[0] % 2]
            if turn[0] % 2 == 0:
                step_ours_and_floor()

        with tempfile.TemporaryDirectory() as folder:
            trl_trainer(setting, rollout, 2 * (rounds + warmup), Path(folder), between).train()
    else:
        for _ in range(rounds + warmup):
            step_ours_and_floor()
    if len({tuple(asdict(count).values()) for count in counts.values()}) != 1:
        raise RuntimeError(f"the sides did not do the same work: {counts}")
    return {
        "setting": asdict(setting),
        "counts": asdict(counts["ours"]),
        "wall": {name: clock.without_warmup(warmup).wall for name, clock in clocks.items()},
        "cpu": {name: clock.without_warmup(warmup).cpu for name, clock in clocks.items()},
        "parts": {name: times[warmup:] for name, times in parts.items()},
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios round by round, with its quartiles."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return median(ratios), low, high


def faster_trl(comparison: dict[str, Any]) -> str | None:
    """Name of TRL's faster rollout."""
    names = [name for name in comparison["wall"] if name.startswith("trl")]
    return min(names, key=lambda name: median(comparison["wall"][name]), default=None)


def scale(setting: Setting, rounds: int, shapes: dict[str, list[int]]) -> dict[str, dict[str, Points]]:
    """Median wall and processor time of our step by number of dialogues, turns and tokens; sizes take turns."""
    torch.set_num_threads(setting.threads)
    axes = {}
    for axis, values in shapes.items():
        sides = {value: Ours(replace(setting, **{axis: value})) for value in values}
        clocks = {value: Clock() for value in values}
        for _ in range(rounds + 1):
            for value, side in sides.items():
                clocks[value].time(side.step)
        measured = {value: clock.without_warmup(1) for value, clock in clocks.items()}
        axes[axis] = {
            "wall": [(value, median(clock.wall)) for value, clock in measured.items()],
            "cpu": [(value, median(clock.cpu)) for value, clock in measured.items()],
        }
    return axes


def fit(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Least squares line through points: slope, intercept, R^2."""
    import numpy as np

    x, y = np.array(points, dtype=float).T
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(((y - slope * x - intercept) ** 2).sum())
    return float(slope), float(intercept), 1 - residual / float(((y - y.mean()) ** 2).sum())


def memory(side: str, setting: Setting, steps: int) -> dict[str, float]:
    """Peak memory in MB of a side alone, in a process of its own: in all, and over what its imports take."""
    command = [
        sys.executable,
        __file__,
        "--alone",
        side,
        "--steps",
        str(steps),
        "--setting",
        json.dumps(asdict(setting)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def alone(side: str, setting: Setting, steps: int) -> None:
    """Run one side alone and print its peak memory as JSON."""
    torch.set_num_threads(setting.threads)
    make_line(setting.said)
    if side.startswith("trl"):
        import trl.trainer.grpo_trainer  # noqa: F401
    before = peak_memory()
    if side.startswith("trl"):
        with tempfile.TemporaryDirectory() as folder:
            rollout = Rollout(setting, side == "trl, cache kept")
            trl_trainer(setting, rollout, steps, Path(folder), lambda wall, cpu: None).train()
    else:
        measured = Ours(setting) if side == "ours" else Floor(setting)
        for _ in range(steps):
            measured.step()
    print(json.dumps({"peak": peak_memory() / 1e6, "over_imports": (peak_memory() - before) / 1e6}))


def comparison_lines(comparison: dict[str, Any]) -> Iterator[str]:
    """The lines of one comparison, as Markdown."""
    setting, wall, cpu, parts = (
        Setting(**comparison["setting"]),
        comparison["wall"],
        comparison["cpu"],
        comparison["parts"],
    )
    counts, best = comparison["counts"], faster_trl(comparison)
    cores = "one thread" if setting.threads == 1 else f"{setting.threads} threads"
    yield (
        f"## {setting.name.capitalize()}, {cores}\n\n{setting.dialogues} dialogues x {setting.turns} turns x "
        f"{setting.tokens} tokens (the user's lines: {setting.said}), groups of {setting.group}, micro-batches of "
        f"{setting.micro}, {len(wall['ours'])} rounds. Every side sampled "
        f"{counts['sampled']} tokens a step, trained {counts['trained']}, and ran its update over {counts['passed']} "
        f"(checked). {comparison['about']}\n"
    )
    yield "| side | step, s (quartiles) | processor, s | rollout / reference / update, s | peak MB (over imports) |"
    yield "|---|---|---|---|---|"
    for name in wall:
        low, middle, high = quantiles(wall[name], n=4, method="inclusive")
        if name == "floor":
            split = " / ".join(f"{median(parts[part]):.3f}" for part in ("decode", "reference", "update"))
        elif name in parts:
            remainder = median(whole - rollout for whole, rollout in zip(wall[name], parts[name], strict=True))
            split = f"{median(parts[name]):.3f} / (with the update) / {remainder:.3f}"
        else:
            split = "-"
        peak = comparison.get("memory", {}).get(name)
        shown = f"{peak['peak']:.0f} ({peak['over_imports']:.0f})" if peak else "not measured"
        mark = " (the faster)" if name == best else ""
        yield f"| {name}{mark} | {middle:.3f} ({low:.3f}-{high:.3f}) | {median(cpu[name]):.3f} | {split} | {shown} |"
    yield ""
    bare = [d + u for d, u in zip(parts["decode"], parts["update"], strict=True)]
    rows: list[tuple[str, Sequence[float], Sequence[float], float | None]] = []
    if best:
        rows.append((f"ours / {best}", wall["ours"], wall[best], TARGET_TRL))
        rows.append((f"ours / {best}, processor time", cpu["ours"], cpu[best], None))
    rows.append(("ours / floor (decode + update)", wall["ours"], bare, TARGET_FLOOR))
    if setting.kl:
        rows.append(("ours / floor with a bare reference pass", wall["ours"], wall["floor"], None))
    rows.append(("ours / whole floor, processor time", cpu["ours"], cpu["floor"], None))
    yield "| ratio, round by round | median (quartiles) | target |"
    yield "|---|---|---|"
    for name, numerators, denominators, target in rows:
        middle, low, high = ratio(numerators, denominators)
        verdict = "-" if target is None else f"at most {target}: {'met' if middle <= target else '**missed**'}"
        yield f"| {name} | {middle:.2f} ({low:.2f}-{high:.2f}) | {verdict} |"
    if not best:
        yield "\nTRL was not installed or left out: not measured."
    yield ""


def scaling_lines(scaling: dict[str, Any]) -> Iterator[str]:
    """The lines of the scaling, as Markdown."""
    setting = Setting(**scaling["setting"])
    yield f"## Our step against dialogues, turns and tokens\n\n{setting.name.capitalize()}; otherwise"
    shape = f"{setting.dialogues} x {setting.turns} x {setting.tokens}"
    yield f"{shape}; medians of {scaling['rounds']}. {scaling['about']}\n"
    yield "![plot](vs_trl.png)\n"
    yield "| by | time | median step, s | line | R^2 |"
    yield "|---|---|---|---|---|"
    for axis, kinds in scaling["axes"].items():
        for kind, points in kinds.items():
            slope, intercept, r2 = fit(points)
            row = ", ".join(f"{value}: {seconds:.3f}" for value, seconds in points)
            name = {"wall": "wall", "cpu": "processor"}[kind]
            yield f"| {axis} | {name} | {row} | {intercept:.3f} s + {1000 * slope:.1f} ms each | {r2:.4f} |"
    yield ""


def plot(scaling: dict[str, Any], file: Path) -> None:
    """Step times and their lines: wall time in black, processor time in grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = scaling["axes"]
    figure, places = plt.subplots(1, len(axes), figsize=(4 * len(axes), 3.2), squeeze=False, layout="constrained")
    for at, (axis, kinds) in zip(places[0], axes.items(), strict=True):
        fits = []
        for (kind, points), colour in zip(kinds.items(), ("black", "0.6"), strict=True):
            slope, intercept, r2 = fit(points)
            x, y = zip(*points, strict=True)
            at.plot(x, [intercept + slope * v for v in x], color=colour, linewidth=1)
            at.plot(x, y, "o", color=colour, label={"wall": "wall", "cpu": "processor"}[kind])
            fits.append(f"{r2:.3f}")
        at.set(xlabel=axis, title=f"R² {' and '.join(fits)}", ylim=(0, None), xlim=(0, None))
    places[0][0].legend()
    places[0][0].set_ylabel("median step, s")
    figure.savefig(file, dpi=120)


def write(results: dict[str, Any], folder: Path) -> None:
    """Write all results so far. Those of earlier runs stay until they are measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vs_trl.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = ["# Our step beside TRL's and beside the floor\n"]
    for comparison in results["comparisons"].values():
        lines += comparison_lines(comparison)
    if "scaling" in results:
        lines += scaling_lines(results["scaling"])
        plot(results["scaling"], folder / "vs_trl.png")
    (folder / "vs_trl.md").write_text("\n".join(lines), encoding="utf-8")


def machine() -> str:
    """Versions, in one line."""
    names = ["torch", "transformers", *(["trl"] if have_trl() else [])]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores"


def load() -> str:
    """Load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small smoke test: no memory, no files")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side that count (default: 9)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before (default: 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: one a core")
    parser.add_argument("--kl", type=float, nargs="+", default=[0.0, 0.05], help="without a reference, and with one")
    parser.add_argument("--sizes", nargs="+", default=["128x2", "256x4"], metavar="HIDDENxLAYERS")
    parser.add_argument("--micro", type=int, default=8, help="dialogues of one forward-backward pass (default: 8)")
    parser.add_argument("--only-scaling", action="store_true", help="measure only our step by size")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out even if it is installed")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the measurement of our step by size")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--out", type=Path, help=f"folder of vs_trl.{{md,png,json}} (default: {RESULTS})")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone:
        alone(options.alone, Setting(**json.loads(options.setting)), options.steps)
        return
    base = Setting(threads=options.threads, micro=options.micro)
    shapes = {"dialogues": [8, 16, 32, 48, 64], "turns": [2, 4, 6, 8], "tokens": [8, 16, 24, 32, 48]}
    rounds, warmup, sizes = options.rounds, options.warmup, options.sizes
    if options.quick:
        base = replace(base, dialogues=8, turns=2, tokens=6, said=6, micro=4)
        shapes = {"dialogues": [8, 16], "turns": [2, 3], "tokens": [4, 8]}
        rounds, warmup, sizes = 2, 1, ["64x2"]
    folder = options.out or (None if options.quick else RESULTS)
    known: dict[str, Any] = {"comparisons": {}}
    if folder and (folder / "vs_trl.json").is_file():
        known = json.loads((folder / "vs_trl.json").read_text(encoding="utf-8"))
    given = arguments if arguments is not None else sys.argv[1:]
    # The results record the command without the output folder, which may be a private path.
    at = given.index("--out") if "--out" in given else len(given)
    command = " ".join(["python benchmarks/vs_trl.py", *given[:at], *given[at + 2 :]])

    def publish(lines: Iterator[str]) -> None:
        print("\n".join(lines), flush=True)
        if folder:
            write(known, folder)

    for size in [] if options.only_scaling else sizes:
        hidden, layers = map(int, size.split("x"))
        for kl in options.kl:
            setting, before = replace(base, hidden=hidden, layers=layers, kl=kl), load()
            print(f"{setting.name} ...", file=sys.stderr)
            comparison = compare(setting, rounds, warmup, have_trl() and not options.no_trl)
            comparison["about"] = f"`{command}`; {machine()}, load {before} before and {load()} after."
            known["comparisons"][f"{setting.name}, {setting.threads}"] = comparison
            publish(comparison_lines(comparison))
            if not (options.quick or options.no_memory):
                print("peak memory ...", file=sys.stderr)
                comparison["memory"] = {name: memory(name, setting, options.steps) for name in comparison["wall"]}
                publish(comparison_lines(comparison))
    if not options.no_scaling:
        print("scaling ...", file=sys.stderr)
        hidden, layers = map(int, sizes[0].split("x"))
        setting, before = replace(base, hidden=hidden, layers=layers), load()
        axes = scale(setting, rounds, shapes)
        about = f"`{command}`; {machine()}, load {before} before and {load()} after."
        known["scaling"] = {"setting": asdict(setting), "rounds": rounds, "axes": axes, "about": about}
        publish(scaling_lines(known["scaling"]))


if __name__ == "__main__":
    main()
