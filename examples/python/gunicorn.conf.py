# gunicorn behind lb: lb runs as many gunicorns as the pool has workers, each with one process of its own.
# gunicorn sends no WATCHDOG=1 by itself. The thread below does, from the process that serves requests.
import lbworker

workers = 1
threads = 4
worker_tmp_dir = "/dev/shm"


def post_worker_init(worker):
    lbworker.beat_in_thread(lambda: worker.alive)
