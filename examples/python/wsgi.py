# A WSGI and an ASGI application that know nothing of lb: gunicorn and uvicorn run them unchanged.
import os
import signal

draining = False


def drain(*_):
    global draining
    draining = True


def close_when_draining(application):
    """With drain_signal = "SIGUSR2" an ASGI application's clients hear with their next answer that they should open another
    connection. gunicorn does this for WSGI applications, see gunicorn.conf.py."""
    signal.signal(signal.SIGUSR2, drain)

    async def wrapped(scope, receive, send):
        async def answer(message):
            if draining and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await application(scope, receive, answer if scope["type"] == "http" else send)

    return wrapped


def hello(client):
    return f"hello {client} from Python worker {os.environ.get('LB_WORKER_ID')} (pid {os.getpid()})\n".encode()


def app(environ, start_response):
    body = hello(environ["REMOTE_ADDR"] or "you")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@close_when_draining
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        body = hello(scope["client"][0] if scope["client"] else "you")  # none on a Unix socket
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
