"""Does the server lose answers under load, and does its memory grow?

    python benchmarks/serve_load.py CHECKPOINT [--clients 64] [--seconds 300]
    python benchmarks/serve_load.py CHECKPOINT --quick       a few seconds, to see that it runs

Starts `omnirouter serve` and keeps so many clients busy, each with one request at a time: files of
noise of 2 to 20 seconds, every tenth request streamed. Writes benchmarks/results/serve-load.json:

- `lost`: requests without a whole answer, by reason; `refused`: by status;
- `different`: answers whose text is not that of the file alone, before the load: batching must not
  change what is heard;
- `latency`: seconds, median and quartiles and the 99th percentile;
- `audio_s_per_s`: seconds of audio answered per second;
- `memory_mb`: of the server's process, after each tenth of the time. It should level off.

Ends with status 1 if an answer was lost or refused.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import soundfile

from omnirouter.files import write_text
from omnirouter.report import timing

RATE = 16_000
FILES = 24
ROUTE = "/v1/audio/transcriptions"
TIMEOUT_S = 600.0
LOADING_S = 300.0
RESULTS = Path(__file__).parent / "results" / "serve-load.json"


@dataclass
class Tally:
    """What the clients have seen."""

    lost: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    different: int = 0
    latency: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sound:
    """A file, its length and what is heard in it when nothing else goes on."""

    data: bytes
    seconds: float
    text: str = ""


def sounds() -> list[Sound]:
    """Noise that comes and goes, as FLAC."""
    rng = np.random.default_rng(0)
    found = []
    for seconds in rng.uniform(2.0, 20.0, FILES):
        wave = 0.1 * rng.standard_normal(int(seconds * RATE))
        wave *= np.sin(np.arange(len(wave)) * 2 * np.pi / RATE) > -0.5
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, RATE, format="FLAC")
        found.append(Sound(buffer.getvalue(), len(wave) / RATE))
    return found


def started(checkpoint: str, clients: int) -> tuple[subprocess.Popen[str], str]:
    """A server and its address, once it answers."""
    command = [sys.executable, "-m", "omnirouter", "serve", "--model", f"model={checkpoint}"]
    command += ["--port", "0", "--vad", "off", "--max-requests", str(2 * clients)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://\S+", line)
    if found is None:
        raise SystemExit(line + process.stderr.read())
    end = time.monotonic() + LOADING_S
    while time.monotonic() < end:
        try:
            httpx.get(f"{found[0]}/health").raise_for_status()
            return process, found[0]
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not begin to answer")


async def ask(http: httpx.AsyncClient, sound: Sound, *, stream: bool = False) -> tuple[int, str]:
    """Status and text of one request."""
    form = {"model": "model", "stream": str(stream).lower()}
    answer = await http.post(ROUTE, data=form, files={"file": ("a.flac", sound.data)})
    if answer.status_code != 200:
        return answer.status_code, answer.text
    if not stream:
        return 200, str(answer.json()["text"])
    *_, last = [line for line in answer.text.split("\n\n") if line]
    event = json.loads(last.removeprefix("data: "))
    return (200, str(event["text"])) if "text" in event else (500, last)


async def client(
    http: httpx.AsyncClient, number: int, files: list[Sound], end: float, tally: Tally
) -> None:
    """One client, until the time is up; whatever it has asked it waits for."""
    count = number
    while time.monotonic() < end:
        sound, count = files[(7 * count) % len(files)], count + 1
        began = time.monotonic()
        try:
            status, text = await ask(http, sound, stream=not count % 10)
        except Exception as error:  # whatever it is, the answer is lost
            tally.lost[type(error).__name__] += 1
            continue
        tally.latency.append(time.monotonic() - began)
        if status != 200:
            tally.refused[str(status)] += 1
            continue
        tally.audio_s += sound.seconds
        tally.different += text != sound.text


async def load(address: str, process: int, clients: int, seconds: float) -> tuple[Tally, float]:
    """The whole test; gives what was seen and the seconds it took."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    tally = Tally()
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT_S, limits=limits) as http:
        files = []
        for sound in sounds():
            status, text = await ask(http, sound)
            if status != 200:
                raise SystemExit(f"refused before the load began: {status} {text}")
            files.append(Sound(sound.data, sound.seconds, text))
        began = time.monotonic()
        end = began + seconds
        tasks = [client(http, number, files, end, tally) for number in range(clients)]
        watching = asyncio.create_task(watch(process, seconds / 10, tally))
        await asyncio.gather(*tasks)
        watching.cancel()
        return tally, time.monotonic() - began


async def watch(process: int, every: float, tally: Tally) -> None:
    """Note the server's memory now and then."""
    while True:
        await asyncio.sleep(every)
        tally.memory_mb.append(round(timing.resident_mb(process) or 0.0, 1))


def report(tally: Tally, seconds: float) -> dict[str, Any]:
    """Plain values."""
    latency = sorted(tally.latency) or [0.0]
    return {
        "answers": len(tally.latency) - sum(tally.refused.values()),
        "lost": dict(tally.lost),
        "refused": dict(tally.refused),
        "different": tally.different,
        "latency": timing.summary(latency)
        | {"p99_s": latency[min(len(latency) - 1, int(0.99 * len(latency)))]},
        "mean_latency_s": statistics.fmean(latency),
        "audio_s_per_s": tally.audio_s / seconds,
        "memory_mb": tally.memory_mb,
        "seconds": seconds,
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seconds = 4.0 if options.quick else options.seconds
    process, address = started(options.checkpoint, options.clients)
    try:
        tally, took = asyncio.run(load(address, process.pid, options.clients, seconds))
    finally:
        process.terminate()
        process.wait(60)
    values = report(tally, took) | {"clients": options.clients}
    print(json.dumps(values, indent=2))
    values = timing.machine("cpu", ("uvicorn", "fastapi")) | values
    write_text(options.out, json.dumps(values, indent=2) + "\n")
    return int(bool(tally.lost or tally.refused))


if __name__ == "__main__":
    sys.exit(main())
