#!/usr/bin/env python3
"""Stands in for telnetd and for VNC servers: greets whoever connects, on the unix socket behind -rfbunixpath, on the port behind
-rfbport, or on the one that is its last argument."""

import os
import socket
import sys


def listen(words):
    if "-rfbunixpath" in words:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(words[words.index("-rfbunixpath") + 1])
    else:
        port = words[words.index("-rfbport") + 1] if "-rfbport" in words else words[-1]
        listener = socket.socket()
        listener.bind(("", int(port)))
    listener.listen()
    return listener


listener = listen(sys.argv[1:])
while True:
    connection, _ = listener.accept()
    # Connections that only look whether somebody is there keep nobody waiting.
    if os.fork() == 0:
        try:
            connection.sendall(b"RFB 003.008\n")
            while connection.recv(4096):
                pass
        except OSError:
            pass
        os._exit(0)
    connection.close()
