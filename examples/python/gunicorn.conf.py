# gunicorn behind lb: lb runs as many gunicorns as the pool has workers, each with one process of its own.
# gunicorn sends no WATCHDOG=1 by itself. The thread below does, from the process that serves requests.
import os
import signal

import lbworker

workers = 1
threads = 4
worker_tmp_dir = "/dev/shm"

# With drain_signal = "SIGUSR2" clients hear with their next answer that they should open another connection.
draining = False


def drain(*_):
    global draining
    draining = True


def pre_request(worker, request):
    if draining:
        request.should_close = lambda: True


def post_worker_init(worker):
    signal.signal(signal.SIGUSR2, drain)
    signal.siginterrupt(signal.SIGUSR2, False)
    lbworker.beat_in_thread(lambda: worker.alive)


def when_ready(server):
    # The signal comes to this process, which would start a second gunicorn for it.
    signal.signal(signal.SIGUSR2, lambda *_: [os.kill(pid, signal.SIGUSR2) for pid in list(server.WORKERS)])
