# asyncio with lbworker.py: the event loop takes the connections, and sends the heartbeats. See lb.toml beside
# it.
import asyncio
import os
import signal

import lbworker

active = 0


async def serve(reader, writer):
    global active
    active += 1
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        client = writer.get_extra_info("peername")[0]
        body = f"hello {client} from Python worker {os.environ.get('LB_WORKER_ID')} (pid {os.getpid()}) {head.split()[1].decode()}\n".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    finally:
        writer.close()
        active -= 1


async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    stop = await lbworker.start_server(serve)
    await ended.wait()
    stop()
    while active:  # lb waits as well, before it sends SIGTERM
        await asyncio.sleep(0.01)


asyncio.run(main())
