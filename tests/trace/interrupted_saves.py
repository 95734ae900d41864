"""Save over and over in children that are killed, or that run out of room, and load after each.

    python -m tests.trace.interrupted_saves FOLDER N_KILLS

Processes are forked, so that none has to import torch; run it as a program, not inside the tests.
Prints how many saves were killed, how many files they left unfinished, and what a full disk said.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

import circuit_trace as ct
from circuit_trace.plan import SiteOutput
from tests.anatomy.toy import ToyModel, anatomy

N_PROMPTS, N_TOKENS = 64, 128
LONGEST = 5
"""How many saves' time a child is given, at most."""
SAVES = 1000
"""More than a child comes to."""


def a_trace(value: float) -> ct.Trace:
    """A record of some MB that holds one number alone, so that a mixture of two would show."""
    graph = anatomy(ToyModel()).graph()
    sizes = [sum(src.site == site for src in graph.srcs) for site in range(3)]
    sites = [SiteOutput(torch.full((N_PROMPTS, N_TOKENS, n, 16), value)) for n in sizes]
    outputs = ct.SourceOutputs(graph.srcs, tuple(sites), N_PROMPTS, N_TOKENS)
    return ct.Trace(graph, outputs, recorded_logits=torch.full((N_PROMPTS, 1000), value))


def number_in(path: Path) -> float:
    """The one number that the file holds."""
    trace = ct.Trace.load(path)
    found = {float(value) for site in trace.current.sites for value in site.code.unique()}
    found |= {float(value) for value in trace.logits.unique()}
    assert len(found) == 1, found
    return found.pop()


def killed(path: Path, seed: int, seconds: float) -> None:
    """A child that saves one trace after the other, until it is killed somewhere on the way."""
    child = os.fork()
    if child == 0:
        try:
            for number in range(SAVES):
                a_trace(float(seed * SAVES + number)).save(path)
        finally:
            os._exit(1)
    time.sleep(random.Random(seed).uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"


def full(path: Path) -> str:
    """What a child is told that may write no more than a few KB."""
    before, (receiver, sender) = path.read_bytes(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            a_trace(-1.0).save(path)
        except ct.InputError as error:
            os.write(sender, str(error).encode())
        finally:
            os._exit(0)
    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as said:
        message = said.read().decode()
    assert path.read_bytes() == before
    return message


def main(folder: Path, n_kills: int) -> None:
    torch.set_num_threads(1)
    path = folder / "x.trace"
    a_trace(0.0).save(path)  # the first takes longer
    start = time.perf_counter()
    a_trace(0.0).save(path)
    seconds = LONGEST * (time.perf_counter() - start)
    found = set()
    for seed in range(n_kills):
        killed(path, seed, seconds)
        found.add(number_in(path))
    unfinished = [file for file in folder.iterdir() if file != path]
    for file in unfinished:
        file.unlink()
    print(f"killed {n_kills}, unfinished {len(unfinished)}, different {len(found)}")
    print(full(path))
    print(f"left {[file.name for file in folder.iterdir()]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
