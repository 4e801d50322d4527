"""Writes the tables of docs/performance.md from the result files in benchmarks/results.

    python benchmarks/performance_page.py

Question: what has been measured, where, and what has not? A result that is not there is named with
the command that makes it, so that no table can claim more than its file holds. Three of the results
are drawn as well: docs/images/speed-cpu.png.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.program import benchmark

from omnirouter.config import ROUTINGS, RunConfig, family
from omnirouter.report import timing
from omnirouter.report.rates import activation_bytes, measured_rates, states, work, working_bytes

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
FEW = 400  # frames: inference is shown with so many, training with more
H200_TFLOPS = 990  # bf16, dense, of NVIDIA's data sheet
GPU_STEP = "python benchmarks/train_step.py --device cuda --seconds 1560"


class Expected(NamedTuple):
    """A result file: its name without `.json`, what it shows, what makes it."""

    stem: str
    title: str
    command: str


EXPECTED = (
    Expected("experts", "Experts, training, CPU", "python benchmarks/experts.py --modes train"),
    Expected(
        "experts-infer", "Experts, inference, CPU", "python benchmarks/experts.py --modes infer"
    ),
    Expected("attention", "Packing, CPU", "python benchmarks/attention.py"),
    Expected("loader", "Loading", "python benchmarks/loader.py"),
    Expected(
        "train-step-small-bf16",
        "Training, our small models, CPU, bf16",
        "python benchmarks/train_step.py",
    ),
    Expected(
        "train-step-small-fp32",
        "Training, our small models, CPU, fp32",
        "python benchmarks/train_step.py --dtype fp32",
    ),
    Expected(
        "train-step-290m-bf16",
        "Training, the paper's models of N=4, CPU, bf16",
        "python benchmarks/train_step.py --family 290m --rounds 5",
    ),
    Expected(
        "train-step-156m-bf16",
        "Training, the paper's models of N=2, CPU, bf16",
        "python benchmarks/train_step.py --family 156m --rounds 5",
    ),
    Expected(
        "train-step-small-bf16-amx",
        "Training, our small models, CPU with AMX, bf16",
        "python benchmarks/train_step.py",
    ),
    Expected(
        "train-step-small-fp32-amx",
        "Training, our small models, CPU with AMX, fp32",
        "python benchmarks/train_step.py --dtype fp32",
    ),
    Expected(
        "train-step-290m-bf16-amx",
        "Training, the paper's models of N=4, CPU with AMX, bf16",
        "python benchmarks/train_step.py --family 290m --rounds 5",
    ),
    Expected(
        "transcribe-small", "Recognition, our small models, CPU", "python benchmarks/transcribe.py"
    ),
    Expected(
        "transcribe-290m",
        "Recognition, the paper's models of N=4, CPU",
        "python benchmarks/transcribe.py --family 290m --rounds 3",
    ),
    Expected(
        "recognition",
        "Recognition, the model of the package beside others, every sixth utterance of dev, CPU",
        "python benchmarks/exports.py --whisper FOLDER --out benchmarks/results/recognition.json",
    ),
    Expected(
        "start",
        "From the command to the text, with and without the language model, CPU",
        "python benchmarks/start.py",
    ),
    Expected("stream-small-fp32", "Streams, our small models, CPU", "python benchmarks/stream.py"),
    Expected(
        "experts-cuda",
        "Experts, training, GPU",
        "python benchmarks/experts.py --device cuda --modes train --tokens 39000 4096 512",
    ),
    Expected(
        "experts-infer-cuda",
        "Experts, inference, GPU",
        "python benchmarks/experts.py --device cuda --modes infer --tokens 39000 4096 400",
    ),
    Expected(
        "attention-cuda",
        "Packing, GPU",
        "python benchmarks/attention.py --device cuda --utterances 32 128",
    ),
    Expected(
        "train-step-small-bf16-cuda",
        "Training, our small models, GPU",
        "python benchmarks/train_step.py --device cuda --family small --seconds 900",
    ),
    Expected(
        "train-step-559m-bf16-cuda",
        "Training, the paper's models of N=8, GPU, one micro-batch of 39k frames",
        f"{GPU_STEP} --family 559m",
    ),
    Expected(
        "train-step-559m-bf16-x8-cuda",
        "Training, the paper's models of N=8, GPU, eight micro-batches of 39k frames",
        f"{GPU_STEP} --family 559m --micro-batches 8",
    ),
    Expected(
        "transcribe-559m-cuda",
        "Recognition, the paper's models of N=8, GPU",
        "python benchmarks/transcribe.py --device cuda --family 559m --recordings 64",
    ),
)


def section(expected: Expected) -> str:
    """Heading, where it was measured, table; or that it was not."""
    path = HERE / "results" / f"{expected.stem}.json"
    if not path.exists():
        return f"### {expected.title}\n\nNot measured yet: `{expected.command}`\n"
    values = json.loads(path.read_text(encoding="utf-8"))
    name = values["benchmark"]
    if name == "experts":
        table = experts(values, "infer" if "infer" in expected.stem else "train")
    else:
        table = benchmark(name).report(values)
    versions = ", ".join(f"{k} {v}" for k, v in values["packages"].items() if v)
    where = values["gpu"] or values["machine"]
    facts = (
        f"`{values['command']}`, commit {values['commit']}, {where}, {values['threads']} threads, "
        f"load {values['load_before']:.1f} before; Python {values['python']}, {versions}. "
        f"File: `benchmarks/results/{path.name}`."
    )
    left_out = values.get("left_out")
    missing = f" Left out: {', '.join(left_out)}." if left_out else ""
    return f"### {expected.title}\n\n{facts}{missing}\n\n{table}\n"


def experts(values: dict[str, Any], mode: str) -> str:
    """Ours of all sizes, rearranged weights for inference, and the fastest of the others."""
    rows = []
    for case in values["cases"]:
        if case["mode"] != mode or (case["tokens"] <= FEW) != (mode == "infer"):
            continue
        peers = {k: v for k, v in case["peers"].items() if k != "dense" and "ours" not in k}
        fastest = min(peers, key=lambda name: peers[name]["median_s"])
        ours = case["peers"].get("ours, prepacked", case["peers"]["ours"])
        share = ours["gflops"] / values["best_gemm_gflops"][case["dtype"]]
        label = [str(case[key]) for key in ("mode", "dtype", "routing", "experts", "tokens")]
        figures = [f"{1e3 * ours['median_s']:.2f}", f"{ours['ratio_to_dense']:.2f}", f"{share:.0%}"]
        peer = f"{fastest}: {peers[fastest]['ratio_to_dense']:.2f}"
        rows.append([*label, *figures, peer])
    columns = ["mode", "dtype", "routing", "N", "frames", "ms", "to dense", "of best GEMM"]
    return timing.table([*columns, "fastest other, to dense"], rows)


class Aim(NamedTuple):
    """A ratio, what it should be (at most, or at least), and what it is."""

    what: str
    sign: str
    limit: float
    measured: float

    def row(self) -> list[str]:
        """Of the table."""
        reached = self.measured <= self.limit if self.sign == "<=" else self.measured >= self.limit
        figures = [f"{self.sign} {self.limit:.2f}", f"{self.measured:.2f}"]
        return [self.what, *figures, "yes" if reached else "no"]


def expert_aims(values: dict[str, Any]) -> Iterator[Aim]:
    """Of layers of experts beside dense ones."""
    keys = ("mode", "dtype", "routing", "experts", "tokens")
    cases = {tuple(case[key] for key in keys): case["peers"] for case in values["cases"]}

    def ratio(*case: str | int, layer: str = "ours") -> float:
        return float(cases[case][layer]["ratio_to_dense"])

    for dtype, limit in (("bf16", 1.10), ("fp32", 1.12)):
        even = ratio("train", dtype, "balanced", 8, 4096)
        yield Aim(f"8 experts to dense, training, 4096 frames, {dtype}", "<=", limit, even)
        skewed = ratio("train", dtype, "skewed", 8, 4096)
        yield Aim(f"the same, 80/20 skew to balanced, {dtype}", "<=", 1.05, skewed / even)
        rate = cases["train", dtype, "balanced", 8, 4096]["ours"]["gflops"]
        share = rate / values["best_gemm_gflops"][dtype]
        yield Aim(f"the same, to the best plain product, {dtype}", ">=", 0.80, share)
        for n, routing in itertools.product((2, 4, 8), ("balanced", "skewed", "varying")):
            few = ratio("train", dtype, routing, n, 512)
            what = f"{n} experts to dense, training, 512 frames, {routing}, {dtype}"
            yield Aim(what, "<=", 1.25, few)


def inference_aims(values: dict[str, Any]) -> Iterator[Aim]:
    """Of layers of experts beside dense ones, without gradients."""
    for case in values["cases"]:
        if case["dtype"] == "bf16" and (case["experts"], case["tokens"]) == (8, 400):
            fast = case["peers"]["ours, prepacked"]["ratio_to_dense"]
            what = "8 experts to dense, inference, 400 frames, {routing}, bf16, rearranged"
            yield Aim(what.format(**case), "<=", 1.15, fast)


def gpu_aims(values: dict[str, Any]) -> Iterator[Aim]:
    """Of layers of experts on an H200."""
    for case in values["cases"]:
        if (case["experts"], case["tokens"], case["routing"]) == (8, 39000, "balanced"):
            share = case["peers"]["ours"]["gflops"] / H200_TFLOPS / 1e3
            what = "8 experts, training, 39000 frames, bf16, H200: rate to 990 TFLOP/s"
            yield Aim(what, ">=", 0.50, share)


def step_aims(values: dict[str, Any]) -> Iterator[Aim]:
    """Of whole training steps of the paper's models of N=4."""
    where = values.get("processor_kind", "AVX-512 BF16")
    for name in ("switch", "omni"):
        what = f"{name} of 290m to dense, a whole training step, bf16, {where}"
        yield Aim(what, "<=", 1.10, values["models"][name]["ratio_to_dense"])


def packing_aims(values: dict[str, Any]) -> Iterator[Aim]:
    """Of packed frames beside padded ones."""
    for case in values["cases"]:
        what = "{part}, {mode}, {dtype}, {utterances} utterances of up to {longest} frames"
        yield Aim("padded to packed: " + what.format(**case), ">=", 1.80, case["speedup"])


def aims() -> str:
    """What was aimed at, beside what was measured."""
    rows = []
    found_in = {
        "experts": expert_aims,
        "experts-infer": inference_aims,
        "attention": packing_aims,
        "train-step-290m-bf16": step_aims,
        "train-step-290m-bf16-amx": step_aims,
        "experts-cuda": gpu_aims,
    }
    for stem, found in found_in.items():
        path = HERE / "results" / f"{stem}.json"
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))
            rows += [aim.row() for aim in found(values)]
    if not rows:
        return "### Aims\n\nNot measured yet.\n"
    return f"### Aims\n\n{timing.table(['ratio', 'aim', 'measured', 'reached'], rows)}\n"


PROCESSORS = ("AMX", "AVX-512 BF16", "AVX-512", "AVX2", "default")
# training with new weights, 4096 and 512 frames, and inference: at most so many times a dense layer
PROCESSOR_AIMS = {
    ("AMX", "train", "bf16", 4096): 1.25,
    ("AMX", "train", "bf16", 512): 1.80,
    ("AMX", "infer", "bf16", 400): 1.25,
    ("AVX-512 BF16", "train", "bf16", 4096): 1.10,
    ("AVX-512 BF16", "train", "bf16", 512): 1.15,
    ("AVX-512 BF16", "infer", "bf16", 400): 1.15,
}
FP32_AIMS = {4096: 1.12, 512: 1.25}
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def roofline(values: dict[str, Any], case: dict[str, Any]) -> float:
    """The least ratio to dense that bytes and operations allow at the rates of this result.

    Weights are read once in each product with them, cast ones read and written once more, their
    gradients written in float32, hidden units read or written six times and frames eight times;
    each layer takes as long as the slower of its bytes and its operations.
    """
    d, f = values["shapes"]["dim"], values["shapes"]["ffn"]
    n, frames, training = case["experts"], case["tokens"], case["mode"] != "infer"
    size = 2 if case["dtype"] == "bf16" else 4

    def seconds(layers: int) -> float:
        weights, hidden, rows = 2 * layers * d * f, frames * f, frames * d
        moved = size * (weights + 2 * hidden + 3 * rows)
        if training:
            moved = size * (2 * weights + 6 * hidden + 8 * rows) + 4 * weights
        if case["mode"] == "train" and size == 2:
            moved += 6 * weights
        operations = 4 * frames * d * f * (3 if training else 1)
        rate = values["best_gemm_gflops"][case["dtype"]]
        return float(max(moved / values["copy_gb_per_s"], operations / rate))

    return seconds(n) / seconds(1)


def processors() -> str:
    """Eight experts, frames drawn anew, on each kind of processor."""
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    sources = []
    results = sorted((HERE / "results").glob("experts-processor-*.json"))
    amd = [HERE / "results" / f"{name}.json" for name in ("experts", "experts-infer")]
    for path in (*results, *(path for path in amd if path.exists())):
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("processor_kind", "AVX-512 BF16")
        limits = [f"{k}={v}" for k, v in values["environment"].items() if k in LIMITS]
        clock = "processor time, one thread" if values.get("cpu_time") else "clock"
        named = f"{kind}{', emulated by ' + ' '.join(limits) if limits else ''}"
        sources.append(
            f"- {named}: {values['machine']}, {clock}, commit {values['commit']}, "
            f"`{values['command']}`, `benchmarks/results/{path.name}`"
        )
        column = f"{kind}*" if limits else kind
        for case in values["cases"]:
            if case["routing"] != "varying" or case["experts"] != 8:
                continue
            row = cells.setdefault((case["mode"], case["dtype"], case["tokens"]), {})
            peers = case["peers"]
            ours = min(v["ratio_to_dense"] for k, v in peers.items() if k.startswith("ours"))
            others = [
                v["ratio_to_dense"] for k, v in peers.items() if k != "dense" and "ours" not in k
            ]
            aim = PROCESSOR_AIMS.get((kind, case["mode"], case["dtype"], case["tokens"]))
            if case["dtype"] == "fp32" and case["mode"] == "train":
                aim = FP32_AIMS.get(case["tokens"])
            facts = [f"{min(others):.2f}", f"{aim:.2f}" if aim else "-"]
            facts.append(f"{roofline(values, case):.2f}" if "copy_gb_per_s" in values else "-")
            row.setdefault(column, f"**{ours:.2f}** ({' / '.join(facts)})")
    columns = [*PROCESSORS[:2], *(f"{kind}*" for kind in PROCESSORS[1:])]
    rows = [
        [mode, dtype, str(frames), *(row.get(c, "not measured") for c in columns)]
        for (mode, dtype, frames), row in sorted(cells.items())
    ]
    text = (
        "Time relative to a dense layer, in bold, and in brackets the fastest other way, the aim "
        "and the roofline. A star: emulated by environment variables on the processor of the AMX "
        "column. `train` casts weights once in each pass, `accumulate` is a further micro-batch "
        "of a step."
    )
    table = timing.table(["mode", "dtype", "frames", *columns], rows)
    sources_text = "\n".join(sources)
    return f"### Experts by kind of processor\n\n{text}\n\n{table}\n\n{sources_text}\n"


def against(values: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A train-step benchmark's steps as predicted by the rates of another one, beside its own.

    Args:
        values: what is predicted.
        other: whose rates are used, those of its model of the same routing.

    Returns:
        By model: `model`, `predicted_s`, `measured_s`, and on a GPU the bytes of `predicted_memory`
        and `measured_memory`.
    """
    rows = []
    half, cuda = values["dtype"] == "bf16", values["gpu"] is not None
    for name in ROUTINGS:
        model = family(values["family"])[name]
        run = RunConfig(model=model, precision=values["dtype"])
        held = states(model, run.optim, half=half, cuda=cuda)
        rates = measured_rates(other, name)
        seconds = {
            p: amount / rates.of[p] for p, amount in work(run, values["lengths"], held).items()
        }
        update = seconds.pop("optimizer")
        activations = activation_bytes(model, values["lengths"], half=half, cuda=cuda)
        memory = sum(held[:4]) + sum(activations.values())
        rows.append(
            {
                "model": name,
                "predicted_s": update + values["micro_batches"] * sum(seconds.values()),
                "measured_s": values["models"][name]["median_s"],
                "predicted_memory": memory + working_bytes(model, values["lengths"], half),
                "measured_memory": values["models"][name]["peak_memory_bytes"],
            }
        )
    return rows


DEVICE = ("machine", "gpu", "dtype")  # what two results share if one predicts the other


def plans() -> str:
    """`omnirouter plan` against measurement: each result by the rates of each other one."""
    results: dict[str, dict[str, Any]] = {}
    for path in sorted((HERE / "results").glob("train-step-*.json")):
        results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name, values in results.items():
        for by, other in results.items():
            if by == name or any(values[key] != other[key] for key in DEVICE):
                continue
            for row in against(values, other):
                times = (row["predicted_s"], row["measured_s"])
                ratio = f"{times[0] / times[1]:.2f}"
                rows.append([name, row["model"], by, *(f"{1e3 * s:.0f}" for s in times), ratio])
    title = "### `omnirouter plan` against measurement\n\n"
    if not rows:
        needed = "two training results of one device and precision are needed"
        return f"{title}Not measured yet: {needed}.\n"
    columns = ["result", "model", "by the rates of", "predicted ms", "measured ms", "ratio"]
    return f"{title}{timing.table(columns, rows)}\n"


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    sections = [aims(), processors(), *map(section, EXPECTED), plans()]
    return before + BEGIN + "\n" + "\n".join(sections) + "\n" + END + after


def draw() -> None:
    """Experts, training steps and recognition on a CPU in one picture."""
    from omnirouter.analysis.drawing import EXPERTS, INK, Figure, styled

    def read(stem: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((HERE / "results" / f"{stem}.json").read_text("utf-8"))
        return values

    with styled:
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        cases = [
            case
            for case in read("experts")["cases"]
            if (case["mode"], case["dtype"], case["routing"], case["tokens"])
            == ("train", "bf16", "varying", 4096)
        ]
        names = [name for name in cases[0]["peers"] if name != "dense"]
        for marker, color, case in zip("o^s", EXPERTS[2:], cases, strict=False):
            ratios = [case["peers"][name]["ratio_to_dense"] for name in names]
            left.plot(ratios, names, marker, color=color, label=f"{case['experts']} experts")
        left.axvline(1.0, color=INK, linewidth=0.8)
        left.set(title="Training time of a layer to dense", ylim=(len(names) - 0.5, -0.5))
        left.legend(loc="upper right")
        models = read("train-step-290m-bf16")["models"]
        middle.barh(list(models), [1e3 * m["median_s"] for m in models.values()], color=EXPERTS[4])
        middle.set(title="A training step, ms", ylim=(len(models) - 0.5, -0.5))
        rates = {name: m["rtfx"] for name, m in read("transcribe-290m")["models"].items()}
        right.barh(list(rates), list(rates.values()), color=EXPERTS[1])
        right.set(title="Recognition, RTFx", ylim=(len(rates) - 0.5, -0.5))
        for axis in (middle, right):
            axis.bar_label(axis.containers[0], fmt="%.0f", padding=2, fontsize=8)
            axis.margins(x=0.15)
        folder = PAGE.parent / "images"
        figure.savefig(folder / "speed-cpu.png", dpi=130)


if __name__ == "__main__":
    draw()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
