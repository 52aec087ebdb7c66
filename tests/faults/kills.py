"""SIGKILL at random moments: of one rank, all ranks, the launcher; most of them in a save."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from runs import STEPS, Ranks, Run, Tally, must, tell

from framework.lock import LOCK

PATIENCE = 120.0


def partial(run: Run) -> Path | None:
    """The checkpoint that is being written, if one is."""
    return next(iter(run.checkpoints.glob("*.partial")), None)


def written(run: Run) -> tuple[str, int] | None:
    """What tells one half-written checkpoint from another."""
    found = partial(run)
    try:
        return None if found is None else (found.name, found.stat().st_ctime_ns)
    except FileNotFoundError:
        return None


def moment(tally: Tally, run: Run, whole: Run) -> tuple[str, Callable[[Ranks], bool]]:
    """A random moment by name, and the wait for it: False where the run ended before."""
    kind = tally.random.choices(["starting", "stepping", "saving", "ending"], [2, 3, 5, 1])[0]
    later = tally.random.random()
    count = tally.random.randint(1, 5)

    def until(happens: Callable[[], bool], ranks: Ranks, delay: float) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not happens():
            if not ranks.poll() or time.monotonic() > deadline:
                return False
            time.sleep(0.0003)
        time.sleep(delay)
        return ranks.poll()

    if kind == "starting":
        return kind, lambda ranks: until(lambda: True, ranks, later * whole.starting)
    if kind == "stepping":
        wanted = len(run.steps()) + count
        return kind, lambda ranks: until(lambda: len(run.steps()) >= wanted, ranks, 0.03 * later)
    if kind == "ending":
        last = run.checkpoints / f"step-{STEPS:08d}" / "manifest.json"
        return kind, lambda ranks: until(last.exists, ranks, 0.2 * later)
    seen = {partial(run)}

    def saving() -> bool:
        now = partial(run)
        seen.add(now)
        return len(seen - {None}) > min(count, 3) and now is not None

    return kind, lambda ranks: until(saving, ranks, 0.008 * later)


def kill(tally: Tally, run: Run, whole: Run) -> tuple[str, bool, Callable[[], None]] | None:
    """One start of the run and its end by SIGKILL: what was done and the check; None: it ended."""
    when, wait = moment(tally, run, whole)
    whom = tally.random.choice(["one rank", "all ranks"]) if run.ranks > 1 else "the process"
    left = written(run)
    ranks = run.start()
    if not wait(ranks):
        in_time = ranks.wait(PATIENCE)
        ranks.send(signal.SIGKILL)
        ranks.wait(10)
        if in_time and set(ranks.codes.values()) == {0}:
            return None
        codes, told = ranks.codes, run.told()
        return "a start", False, lambda: must(False, f"it ended with {codes}\n{told}")
    victim = tally.random.randrange(run.ranks)
    began = time.monotonic()
    ranks.send(signal.SIGKILL, *([victim] if whom == "one rank" else []))
    in_time = ranks.wait(60)
    ranks.send(signal.SIGKILL)
    ranks.wait(10)
    if set(ranks.codes.values()) == {0}:
        return None  # it had ended by itself just before
    cut = written(run) not in (None, left)

    def check() -> None:
        must(in_time, f"the other rank is there 60 s after {victim} was killed")
        if whom == "one rank" and when != "starting":
            must(any(ranks.codes.values()), f"exit codes {ranks.codes}")
            told = run.log(1 - victim).read_text()
            must("peer" in told or "onnection" in told, f"the other rank says:\n{told}")
        before = run.known
        if before >= 0 and when != "starting":
            line = f"resuming {run.folder} at step {before}"
            must(line in run.told(), f"not told: {line}\n{run.told()}")
        must(time.monotonic() - began < 90, "it took more than 90 s")
        run.check_kept()

    return f"SIGKILL of {whom}, {when}", cut, check


def lives(
    tally: Tally, name: str, folder: Path, settings: list[str], kills: int, ranks: int
) -> int:
    """Kill runs again and again until `kills` are done; how many found a save half done."""
    whole = Run(folder / f"{name}-whole", *settings, ranks=ranks)
    whole.finish()
    done = halves = 0
    while done < kills:
        run = Run(folder / f"{name}-{done}", *settings, ranks=ranks)
        lived = 0
        while done < kills:
            killed = kill(tally, run, whole)
            if killed is None:
                break
            kind, cut, check = killed
            tally.fault(kind, check)
            done, lived, halves = done + 1, lived + 1, halves + cut
        told = f"the end of a run that was killed {lived} times, {name}"
        tally.fault(told, lambda run=run: (run.finish(), run.check_end(whole)))
        shutil.rmtree(run.folder)
    return halves


def launcher(tally: Tally, folder: Path, settings: list[str], kills: int) -> None:
    """SIGKILL of torchrun: its ranks go on alone; who starts again meanwhile is refused."""
    whole = Run(folder / "launched-whole", *settings, "zero=2", ranks=2)
    whole.finish()
    run = Run(folder / "launched", *settings, "zero=2", ranks=2)
    for _ in range(kills):
        with run.torchrun() as torchrun:
            wanted = len(run.steps()) + tally.random.randint(1, 8)
            while len(run.steps()) < wanted and torchrun.poll() is None:
                time.sleep(0.002)
            code = torchrun.poll()
            workers = [] if code is not None else children(torchrun.pid)
            torchrun.kill()
        told = f"torchrun ended by itself with {code}\n{run.told()}"
        alive = [process for process in workers if Path(f"/proc/{process}").exists()]
        kind = "SIGKILL of the launcher, stepping"
        tally.fault(
            kind,
            lambda code=code, told=told, alive=alive: (
                must(code is None, told),
                check_orphans(run, alive),
            ),
        )
    told = "the end of a run whose launcher was killed"
    tally.fault(told, lambda: (run.finish(), run.check_end(whole)))


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(c) for c in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def check_orphans(run: Run, orphans: list[int]) -> None:
    """A second start is refused while ranks of the first are there; then the run goes on."""
    again = run.ended()
    if orphans and any(again):
        must("is in use: process" in run.told(), f"the second start says:\n{run.told()}")
    for process in orphans:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    time.sleep(0.2)
    run.check_kept()
    must(not list(run.folder.glob(f"{LOCK}.*")), "a start that was refused leaves its note")


def all_of(tally: Tally, folder: Path, settings: list[str], count: int) -> None:
    """So many kills, most of them of one process: that is quick."""
    halves = 0
    sharded, launched = round(0.14 * count), max(1, round(0.04 * count))
    plain = count - 2 * sharded - launched
    for name, kills, ranks in (("none", plain, 1), ("2", sharded, 2), ("3", sharded, 2)):
        halves += lives(tally, f"zero-{name}", folder, [*settings, f"zero={name}"], kills, ranks)
        tell(f"zero={name}: {kills} kills")
    launcher(tally, folder, settings, launched)
    tell(f"{halves} of {count} kills found a checkpoint half written")
