"""Skills for the tests of worker processes, which import this file by its name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np

from minerua.values import Skill


class OddError(Exception):
    def __init__(self, code, hint):
        super().__init__(f"odd {code}: {hint}")


class PlainError(ValueError):
    pass


class Unsayable(Exception):
    def __str__(self):
        raise OSError


def echo(**inputs):
    return inputs


def double(x):
    return {"y": 2 * x}


def look(x):
    return {"writeable": x.flags.writeable, "owner": type(x.base).__name__}


def fail(kind):
    if kind == "odd":
        raise OddError(7, "no hint")
    if kind == "local":

        class Local(Exception):
            pass

        raise Local("made in a function")
    if kind == "exit":
        sys.exit(3)
    if kind == "unsayable":
        raise Unsayable
    raise PlainError("a plain one")


def die(how, array=None):
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), getattr(signal, how))


def sleep(seconds, pid_file=None):
    if pid_file:
        child = subprocess.Popen(["sleep", "100"])
        with open(pid_file, "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
    time.sleep(seconds)
    return {}


def hang_with_the_lock(seconds):
    ctypes.PyDLL(None).sleep(seconds)


def eat(nbytes, how="numpy"):
    if how == "torch":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")
    return {"total": int(np.ones(nbytes, np.uint8).sum(dtype=np.int64))}


def talk():
    print("noise on the output")
    os.write(1, b"more noise")
    return {"heard": sys.stdin.read()}


def steps(count):
    for n in range(count):
        yield {"n": n}


async def later(x):
    return {"y": x}


async def later_steps(count):
    for n in range(count):
        yield {"n": n}


def process():
    return {"pid": os.getpid()}


def unsendable():
    return {"y": lambda: 1}


def count_loads(setup):

    def call():
        return {"threads": setup.threads, "pid": os.getpid()}

    return call


def wrapped(x):
    return {"y": x + 1}


wrapped = Skill("wrapped", call=wrapped)
by_setup = Skill("by-setup", load=count_loads)
number = 5
