"""Signs of life between the processes that train together.

A process that dies closes its connections, which the others notice at once. A machine that loses its power or its
network closes nothing: without these signs the others would wait for it until PyTorch's timeout, half an hour later.
"""
import contextlib
import os
import secrets
import socket
import sys
import threading
import time

INTERVAL = 2.  # seconds between two signs
GREETING = 5.  # seconds for somebody who connects to say who it is
PATIENCE = 45.  # seconds without one, after which a process counts as lost


class Heartbeat:
    """Connections between the first process and each other one, over which both sides say that they live.

    on_lost(sentence): called in a thread of its own when one has not been heard of for PATIENCE seconds.
    """

    def __init__(self, rank, on_lost):
        self._rank, self._on_lost = rank, on_lost
        self._stopped, self._sockets = threading.Event(), []

    def listen(self, others):
        """In the first process: wait for so many others in a thread. Returns what they need: (port, password)."""
        server = socket.create_server(('', 0), backlog=others + 64)
        self._sockets.append(server)
        password = secrets.token_bytes(16)  # others on the network can knock, too
        self._start(lambda: self._accept(server, others, password))
        return server.getsockname()[1], password

    def connect(self, address, port, password):
        """In another process: connect to the first one."""
        connection = socket.create_connection((address, port), timeout=PATIENCE)
        connection.sendall(password + self._rank.to_bytes(4, 'big'))
        self._watch(connection, 'the first process')

    def stop(self):
        """End the signs, which the other side takes for an orderly end."""
        self._stopped.set()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.close()

    def _accept(self, server, others, password):
        while others:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # stopped
            rank = self._greeted_by(connection, password)
            if rank is None:
                connection.close()  # whoever it was, the others are still to come
            else:
                self._watch(connection, f'process {rank}')
                others -= 1

    @staticmethod
    def _greeted_by(connection, password):
        """The rank of the process that has connected, or None where it is somebody else."""
        connection.settimeout(GREETING)
        try:
            greeting = connection.recv(len(password) + 4, socket.MSG_WAITALL)
        except OSError:
            return None
        known = len(greeting) == len(password) + 4 and secrets.compare_digest(greeting[:-4], password)
        return int.from_bytes(greeting[-4:], 'big') if known else None

    def _watch(self, connection, name):
        connection.settimeout(PATIENCE)
        self._sockets.append(connection)
        self._start(lambda: self._send(connection))
        self._start(lambda: self._receive(connection, name))

    def _send(self, connection):
        with contextlib.suppress(OSError):
            while not self._stopped.wait(INTERVAL):
                connection.sendall(b'.')

    def _receive(self, connection, name):
        heard = time.monotonic()
        while not self._stopped.is_set():
            try:
                if not connection.recv(64):
                    return  # it has ended; whoever waits for it notices
            except TimeoutError:
                self._on_lost(f'{name} has not been heard of for {time.monotonic() - heard:.0f} seconds: its machine '
                              'or the network is down')
                return
            except OSError:
                return
            heard = time.monotonic()

    @staticmethod
    def _start(work):
        threading.Thread(target=work, daemon=True).start()


def end_process(sentence):
    """End this process at once with exit code 2: its main thread waits for somebody who does not answer."""
    with contextlib.suppress(OSError):
        os.write(2, f'\n{os.path.basename(sys.argv[0])}: error: {sentence}.\n'.encode())
    os._exit(2)
