"""Trains in forked children that are killed at given moments; see test_kills.py.

Started once, so that torch is imported once. Reads orders as JSON lines: `config` (a pickled
RunConfig), `resume`, and the moment: `delay` seconds after step `target` has been done, or after
the beginning if `target` is null; no `delay` means no kill. Answers each with how the child ended.
What every step is made of goes to order.jsonl in the run's folder.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.step import MicroBatches
from omnirouter.train.trainer import Trainer


class Doomed(Trainer):
    """A trainer whose process is killed some time after a step."""

    target, delay = 0, 0.0
    timer: threading.Timer | None = None

    def step(self, work: MicroBatches) -> None:
        """As ever, but what goes in is written down before."""
        row = {"step": self.progress.step, "ids": [batch.ids for batch in work.batches]}
        with open(Path(self.config.out) / "order.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        super().step(work)
        if self.delay and self.timer is None and self.progress.step >= self.target:
            self.timer = killer(self.delay)


def killer(delay: float) -> threading.Timer:
    """Kill this process after `delay` seconds, whatever it is doing then."""
    timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
    return timer


def child(order: dict[str, Any]) -> None:
    """Train as ordered; whoever is to be killed waits for it when done too early."""
    config = pickle.loads(Path(order["config"]).read_bytes())
    delay, target = order.get("delay", 0.0), order.get("target")
    timer = killer(delay) if delay and target is None else None
    trainer = Doomed(config, resume=order["resume"], reporter=ProgressReporter(config.steps))
    if target is not None:
        trainer.target, trainer.delay = target, delay
    trainer.run()
    trainer.close()
    if delay:
        (timer or trainer.timer or killer(delay)).join()


def main() -> None:
    """Obey until there are no more orders."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
