"""Writes the tables of docs/performance.md from the result files in benchmarks/results.

    python benchmarks/performance_page.py

Question: what has been measured, where, and what has not? A result that is not there is named with
the command that makes it, so that no table can claim more than its file holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from omnirouter.study.bench import timing
from omnirouter.study.bench.program import benchmark
from omnirouter.study.rates import against

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
GPU_STEP = "python benchmarks/train_step.py --device cuda --seconds 1560"


class Expected(NamedTuple):
    """A result file: its name without `.json`, what it shows, what makes it."""

    stem: str
    title: str
    command: str


EXPECTED = (
    Expected("experts", "Experts, CPU", "python benchmarks/experts.py"),
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
        "transcribe-small", "Recognition, our small models, CPU", "python benchmarks/transcribe.py"
    ),
    Expected(
        "transcribe-290m",
        "Recognition, the paper's models of N=4, CPU",
        "python benchmarks/transcribe.py --family 290m --rounds 3",
    ),
    Expected("stream-small-fp32", "Streams, our small models, CPU", "python benchmarks/stream.py"),
    Expected(
        "experts-cuda",
        "Experts, GPU",
        "python benchmarks/experts.py --device cuda --tokens 39000 4096 512",
    ),
    Expected(
        "attention-cuda",
        "Packing, GPU",
        "python benchmarks/attention.py --device cuda --utterances 32 128",
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
    table = experts(values) if name == "experts" else benchmark(name).report(values)
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


def experts(values: dict[str, Any]) -> str:
    """Ours of all sizes, rearranged weights for inference, and the fastest of the others."""
    sizes = sorted({case["tokens"] for case in values["cases"]})
    rows = []
    for case in values["cases"]:
        shown = sizes[1:] if case["mode"] == "train" else sizes[:1]
        if case["tokens"] not in shown:
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


def plans() -> str:
    """`omnirouter plan` against measurement: each result by the rates of each other one."""
    results: dict[str, dict[str, Any]] = {}
    for path in sorted((HERE / "results").glob("train-step-*.json")):
        results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name, values in results.items():
        for by, other in results.items():
            if by == name or any(values[key] != other[key] for key in ("gpu", "dtype")):
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
    sections = [*map(section, EXPECTED), plans()]
    return before + BEGIN + "\n" + "\n".join(sections) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
