"""Faults from inside: loaded by every Python of a team under chaos, through PYTHONPATH. No product code knows of it.

Every forked child waits for one real-time signal; the order that it then carries out stands in `$CHAOS_ORDERS/<pid>`. As long
as there is a `$CHAOS_ORDERS/crash`, it ends at once. The wall clock is as far off as the eight bytes of `$CHAOS_CLOCK` say, and
they may change. (libfaketime was tried: when it leaves the monotonic clock alone, every time.sleep fails with EINVAL.)
"""

import mmap
import os
import signal
import struct
import time

ORDER = signal.SIGRTMIN + 7
ORDERS = os.environ.get("CHAOS_ORDERS")
CLOCK = os.environ.get("CHAOS_CLOCK")
hoard = []  # descriptors that are never closed


def carry_out(*_):
    path = os.path.join(ORDERS, str(os.getpid()))
    with open(path) as file:
        order = file.read().strip()
    os.unlink(path)
    globals()[order]()


def exit0():
    os._exit(0)


def exit1():
    os._exit(1)


def spin():
    # Holds the interpreter and its lock: this match takes 2**40 steps inside one C function.
    import re

    re.match("(a+)+$", "a" * 40 + "b")


def block():
    time.sleep(3600)


def descriptors():
    """None is left, and whatever is closed leaks at once again."""
    import resource
    import threading

    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    def leak():
        while True:
            try:
                hoard.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                time.sleep(0.001)

    threading.Thread(target=leak, daemon=True).start()


def deaf():
    import socket

    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                is_listener = one.family != socket.AF_UNIX and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            continue  # no socket
        if is_listener:
            os.close(int(name))


def grandchild(own_session=False):
    import subprocess

    child = subprocess.Popen(["sleep", "300"], start_new_session=own_session)
    with open(os.path.join(ORDERS, f"{os.getpid()}.grandchild"), "w") as file:
        file.write(str(child.pid))
    os._exit(1)


def far_grandchild():
    grandchild(own_session=True)


def listen_for_orders():
    if os.path.exists(os.path.join(ORDERS, "crash")):
        os._exit(3)  # whoever is forked now
    try:
        signal.signal(ORDER, carry_out)
    except ValueError:
        pass  # forked off another thread than the main one: no specialist


def set_clock_by(path):
    with open(path, "rb") as file:
        page = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    offset = struct.Struct("q").unpack_from
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + offset(page)[0]
    time.time_ns = lambda: nanoseconds() + offset(page)[0] * 10**9


if CLOCK:
    set_clock_by(CLOCK)
if ORDERS:
    os.register_at_fork(after_in_child=listen_for_orders)
