#!/usr/bin/env python3
"""Programs to be wrapped, in all the ways in which programs behave. Usage: wrapped.py KIND [ARGUMENT...]"""

import os
import signal
import socket
import sys
import time


def listen(port, family=socket.AF_INET, host="", v6only=None):
    listener = socket.socket(family, socket.SOCK_STREAM)
    # As a server does that was not written for being wrapped: no SO_REUSEADDR.
    if v6only is not None:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    listener.bind((host, int(port)))
    listener.listen()
    return listener


def answer(connection, name):
    """Says who it is, then echoes until the client has ended."""
    connection.sendall(name + b"\n")
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()


def serve(listener, name=b"echo"):
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            answer(connection, name)
            os._exit(0)
        connection.close()
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


def echo(port):
    """Serves one client after another."""
    serve(listen(port), b"%d" % os.getpid())


def one_shot(port):
    """Serves one client and exits."""
    listener = listen(port)
    connection, _ = listener.accept()
    listener.close()
    answer(connection, b"one shot")


def late_one_shot(port):
    """Takes its time before it listens, serves one client and exits."""
    time.sleep(1)
    one_shot(port)


def fork_late(port):
    """Listens, goes to the background, and exits with status 9 when it has served two clients."""
    listener = listen(port)
    if os.fork() > 0:
        os._exit(0)
    for _ in range(2):
        connection, _ = listener.accept()
        answer(connection, b"daemon")
    os._exit(9)


def late(port):
    """Takes its time before it listens."""
    time.sleep(1)
    echo(port)


def never():
    """Never listens."""
    signal.pause()


def daemon(port):
    """Forks twice, and listens only after its parents have exited."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    time.sleep(0.3)
    echo(port)


def workers(port):
    """A master that only forks workers which accept."""
    listener = listen(port)
    for _ in range(2):
        if os.fork() == 0:
            serve(listener, b"%d" % os.getppid())
    signal.pause()


def both(port):
    """Binds IPv4 and IPv6 to the same port, as servers do that do not trust dual stack."""
    four = listen(port)
    six = listen(port, socket.AF_INET6, "::", 1)
    print("names", four.getsockname()[:2], six.getsockname()[:2], flush=True, file=sys.stderr)
    if os.fork() == 0:
        serve(six, b"six")
    serve(four, b"four")


def six(port):
    """Binds IPv6 only."""
    serve(listen(port, socket.AF_INET6, "::1"), b"six")


def dual(port):
    """Binds dual stack."""
    serve(listen(port, socket.AF_INET6, "::", 0), b"dual")


def stubborn(port):
    """Ends for no signal that can be taken, and tells when it was asked to."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: print("still here", flush=True, file=sys.stderr))
    echo(port)


def report(port):
    """Tells on stderr which signals it gets."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        signal.signal(number, lambda got, _: print("got", signal.Signals(got).name, flush=True, file=sys.stderr))
    listener = listen(port)
    print("ready", flush=True, file=sys.stderr)
    serve(listener)


def reader(port):
    """Asks for a line on the terminal, and serves it to its clients."""
    listener = listen(port)
    connection, _ = listener.accept()
    connection.sendall(input("what? ").encode() + b"\n")
    serve(listener)


def inside(port):
    """Tells on stderr what it was started with."""
    files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    links = {}
    for number in files:
        try:
            links[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass
    with open("/proc/self/status") as status:
        masks = dict(line.split(":\t") for line in status if line.startswith(("SigBlk", "SigIgn")))
    print("files", links, flush=True, file=sys.stderr)
    print("masks", {name: mask.strip() for name, mask in masks.items()}, flush=True, file=sys.stderr)
    print("group", os.getpgrp() == os.getpid(), flush=True, file=sys.stderr)
    echo(port)


def unix(path):
    """Listens on a unix socket, after a while."""
    time.sleep(0.3)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    serve(listener, b"unix")


def exit_with(status):
    """Exits at once."""
    sys.exit(int(status))


def die():
    """Is killed by a signal."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
