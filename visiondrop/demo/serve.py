"""`visiondrop demo`: the page on an address of this machine, behind a guard."""

import logging
import socket
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders

from ..errors import VisionDropError
from ..families import loader
from ..precision import precision
from . import media
from .engine import Engine
from .page import HERE, Page

TESTBED = Path(__file__).resolve().parents[2] / "checkpoints/testbed"
ABOUT_TESTBED = (
    "The model is the shipped testbed: small, trained by us on drawn scenes, and it answers in one word about colours, "
    "shapes, digits and counts. It shows what each method keeps; none of its answers says what a 7B model would answer."
)
MOST_BODY = media.MOST_BYTES * 3 // 2  # a file in base64, and the form around it
# What the page itself asks for.  All else that Gradio would serve or take is refused: files, uploads, proxies, its API.
ALLOWED = (
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/static/",
    "/assets/",
    "/svelte/",
    "/gradio_api/run/predict",  # what needs no queue: the budget in words, an example's question
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/heartbeat/",
    "/gradio_api/startup-events",
    "/gradio_api/app_id",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self'; object-src 'none'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Lets through what the page needs, and bodies up to a limit; every answer forbids connections to other hosts."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        # Read before any refusal: a connection closed on an unread body is reset, and the sentence may never arrive.
        body = await _body(receive) if scope["method"] == "POST" else b""
        if path != "/" and not path.startswith(ALLOWED):
            return await _refuse(send, 404, "This page serves no such address.")
        if body is None:
            return await _refuse(
                send, 413, f"The request is too large; a picture may have {media.MOST_BYTES >> 20} MB."
            )
        if b"gradio.FileData" in body:  # Gradio would look for such files on this machine
            return await _refuse(send, 400, "This page takes no references to files.")
        waiting = [{"type": "http.request", "body": body, "more_body": False}] if scope["method"] == "POST" else []

        async def replay() -> dict:
            return waiting.pop() if waiting else await receive()

        async def headed(message: dict) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, replay, headed)


async def _body(receive: Any) -> bytes | None:
    """The whole body, or None where it passes the limit."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        size += len(message.get("body", b""))
        if size > MOST_BODY:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Any, status: int, sentence: str) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    text = sentence.encode()
    head.append((b"content-length", str(len(text)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text})


def make_app(engine: Engine, model: str, about: str) -> FastAPI:
    """The page as an application.

    Args:
        model: folder or hub id, for the commands that the page shows; about: a sentence on it, as HTML.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    blocks = Page(engine, model, about).build()
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=1,  # nothing is uploaded
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        VisionDropError: the address is taken, or none of this machine's.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise VisionDropError(
            f"--host {host} --port {port}: {error.strerror or error}; give another port, or --port 0 for a free one"
        ) from error


def serve(model: str | None, host: str, port: int) -> None:
    """Load the model, warm it up, print the address and serve until interrupted."""
    if model is None and not TESTBED.is_dir():
        raise VisionDropError(
            f"the testbed is not at {TESTBED}: run the demo from a checkout of the repository, or give --model"
        )
    path = str(TESTBED) if model is None else model
    dtype, _ = precision()
    with open_socket(host, port) as listening:
        engine = Engine(loader().load(path, dtype))
        about = ABOUT_TESTBED if model is None else f"The model is {path}."
        app = make_app(engine, "checkpoints/testbed" if model is None else path, about)
        warm_up(engine)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        print(f"VisionDrop demo of {path} in {str(dtype).removeprefix('torch.')}: {address}", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Whoever reaches this address can use the model.", flush=True)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run([listening])


def warm_up(engine: Engine) -> None:
    """One request before the first, so that its times are not those of a cold start."""
    video = engine.shape.kind == "video"
    name = next(name for name, e in media.examples().items() if e.video == video)
    engine.compare(media.open_picture(media.example(name).path), "What is it?", "25%", ["visiondrop"])
