# A WSGI and an ASGI application that know nothing of lb: gunicorn and uvicorn run them unchanged.
import os


def hello(client):
    return f"hello {client} from Python worker {os.environ.get('LB_WORKER_ID')} (pid {os.getpid()})\n".encode()


def app(environ, start_response):
    body = hello(environ["REMOTE_ADDR"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        body = hello(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
