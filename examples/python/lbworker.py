"""Take connections from lb, tell it when this process is ready, and send it heartbeats.

With `handoff = "lb"` in the pool, lb gives each accepted socket to a worker over a channel (docs/handoff.md); otherwise it
hands a listening socket over as descriptor 3, as systemd does. listen() returns either, and without lb a socket of its
own, so that one program works everywhere. Python 3.9 or newer, and no other library. Copy this file into your project.

    server.socket = lbworker.listen()              # socketserver, http.server, wsgiref
    await lbworker.start_server(callback)          # asyncio, as asyncio.start_server
"""
import asyncio
import os
import socket
import struct
import sys
import threading

TAKEN, REFUSED = b"\x01", b"\x04"
PROBE = 2
HEADER = struct.Struct("!4sBBHQ16s8x")


class Channel:
    """lb's channel, with as much of a listening socket's methods as servers use. Connections come from accept()."""

    def __init__(self, fd):
        self._channel = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)

    def fileno(self):
        return self._channel.fileno()

    def close(self):
        self._channel.close()

    def getsockname(self):
        host, _, port = os.environ.get("LB_HANDOFF_ADDRESS", "0.0.0.0:0").rpartition(":")
        return host.strip("[]"), int(port)

    def accept(self):
        """Returns a connection and its client's address. Raises BlockingIOError if none waits: lb may take back what
        was there a moment ago. Raises EOFError once lb is gone."""
        while True:
            # Not socket.recv_fds, which ignores its flags and would block.
            message, control, _, _ = self._channel.recvmsg(256, socket.CMSG_LEN(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            if not message:
                raise EOFError("lb has closed the channel")
            if not control:  # no room for one more descriptor: lb gives the connection to another worker
                self._answer(REFUSED)
                raise OSError("too many open files")
            self._answer(TAKEN)
            connection = socket.socket(fileno=int.from_bytes(control[0][2][:4], sys.byteorder))
            _, kind, _, port, _, address = HEADER.unpack_from(message)
            if kind == PROBE:
                connection.close()
                continue
            connection.setblocking(True)
            if any(address):  # a PROXY header named the client
                mapped = address.startswith(b"\0" * 10 + b"\xff\xff")
                host = socket.inet_ntop(socket.AF_INET, address[12:]) if mapped else socket.inet_ntop(socket.AF_INET6, address)
                return connection, (host, port)
            try:
                return connection, connection.getpeername()
            except OSError:  # it was reset before it was taken
                connection.close()

    def _answer(self, answer):
        try:
            self._channel.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # lb is gone, or has given this worker up


def listen(address=("127.0.0.1", 8080)):
    """Returns lb's channel, the listening socket that lb or systemd hands over, or a new one at the address."""
    if os.environ.get("LB_HANDOFF_FD"):
        return Channel(int(os.environ["LB_HANDOFF_FD"]))
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)
    return socket.create_server(address)


def notify(state):
    """Tells lb or systemd a state, such as READY=1, WATCHDOG=1 or STOPPING=1 (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            pass  # whoever is not heard is found silent


def beat_interval():
    """Returns how often to send a heartbeat, in seconds; None if none is asked for."""
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 2e6 or None


def beat_in_thread(alive=lambda: True):
    """Sends heartbeats from a thread, as long as alive() says so. It should touch what the program needs."""
    interval = beat_interval()

    def run():
        while True:
            if alive():
                notify("WATCHDOG=1")
            threading.Event().wait(interval)

    if interval:
        threading.Thread(target=run, daemon=True).start()


async def start_server(callback, address=("127.0.0.1", 8080)):
    """Serves as asyncio.start_server does, says READY=1, and sends heartbeats from the event loop: one that hangs is
    found silent. Returns a function that ends the taking of connections; those that are there go on."""
    loop, listening = asyncio.get_running_loop(), listen(address)
    tasks = set()

    def keep(coroutine):
        task = loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def serve(connection):
        connection.setblocking(False)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, callback)
        await loop.connect_accepted_socket(lambda: protocol, connection)

    def take():
        try:
            connection, _ = listening.accept()
        except EOFError:
            stop()
        except OSError:
            pass  # taken back, or by another
        else:
            keep(serve(connection))

    async def beat(interval):
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    def stop():
        if listening.fileno() >= 0:
            loop.remove_reader(listening.fileno())
            listening.close()

    if isinstance(listening, socket.socket):
        listening.setblocking(False)
    loop.add_reader(listening.fileno(), take)
    notify("READY=1")
    if beat_interval():
        keep(beat(beat_interval()))
    return stop
