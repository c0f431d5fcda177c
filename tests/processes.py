"""Processes of the tests' own, forked from a server that has imported everything once."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
# the server inherits these; what is listed is found by whatever is forked from it
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
os.environ["OMP_NUM_THREADS"] = "1"

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train"])


class Ended(NamedTuple):
    """How a process ended: its exit status (negative: the signal), and all that it wrote."""

    returncode: int
    stdout: str
    stderr: str


def start(function, *args, folder, **environment):
    """Call ``function(*args)`` in a process of its own, in ``folder``; its output goes to files there."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(".stdout*")))
    files = [folder / f".{stream}{number}" for stream in ("stdout", "stderr")]
    for file in files:
        file.touch()
    process = SERVER.Process(target=_call, args=(function, args, folder, files, environment))
    process.start()
    return process, files


def wait(process, files, timeout=240):
    """The end of a process; one that does not come to it fails the test."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"still running after {timeout} s: {files[1].read_text()[-3000:]}")
    return Ended(process.exitcode, *(file.read_text() for file in files))


def run(function, *args, folder, **environment):
    """`start` and `wait`."""
    return wait(*start(function, *args, folder=folder, **environment))


def run_together(processes, function, *args, folder, **environment):
    """The ends of so many processes of one gloo group, as torchrun would start them: each has its rank."""
    if processes == 1:
        return [run(function, *args, folder=folder, **environment)]
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # a port that nobody else gets
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    common |= {"WORLD_SIZE": processes, "NODE_RANK": 0} | environment
    started = [start(function, *args, folder=folder, LOCAL_RANK=rank, RANK=rank, **common) for rank in range(processes)]
    return [wait(*one) for one in started]


def _call(function, args, folder, files, environment):
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        stream.flush()
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), stream.fileno())
    os.environ.update({name: str(value) for name, value in environment.items()})
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read from the environment when Lightning is imported
    os.chdir(folder)
    sys.argv = [function.__name__]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    function(*args)
