"""Serves the page: on one address, to the end, and without any request to other machines."""

import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported

import gradio as gr
import gradio.routes
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from ddpm_jax.app.model import Model
from ddpm_jax.app.origin import Origins
from ddpm_jax.app.page import CSS, Page
from ddpm_jax.runtime.errors import UnavailableError

# A browser that obeys it loads and sends nothing elsewhere, whatever the components contain.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; form-action 'self'"
)
MAX_UPLOAD = 200 * 2**20  # bytes
MAX_BODY = 16 * 2**20  # of any other request; the largest is a painting of the editor
# What the page and the clients of Gradio request. Gradio has more routes, such as those that fetch files of other servers.
PATHS = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.*)?"
    r"|/gradio_api/(info|app_id|login_check|startup-events|heartbeat/.*|run/predict|queue/(join|data|status)|cancel|reset"
    r"|call/(?!v2).*|upload|upload_progress|component_server|file=(?!.*://).*)/?"
)
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
logger = logging.getLogger(__name__)


class OnlyThisServer:
    """Answers requests of `PATHS` that `Origins` allows and that are not too large, and adds `POLICY` to every response.

    After `closing` is set, it breaks responses off. Gradio's last message would end the event of a page without its state,
    and its button would do nothing; a page whose connection breaks shows that, and is loaded again when there is a server.
    """

    def __init__(self, app: Any, origins: Origins, closing: threading.Event):
        self._app, self._origins, self._closing = app, origins, closing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def with_policy(message: Any) -> None:
            nonlocal begun
            if self._closing.is_set():
                return
            if message["type"] == "http.response.start":
                begun = True
                message = message | {"headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif fault := self._origins.fault(scope["headers"]):
            await PlainTextResponse(fault, status_code=403)(scope, receive, with_policy)
        elif not PATHS.fullmatch(scope["path"]):
            await PlainTextResponse("not found", status_code=404)(scope, receive, with_policy)
        elif fault := _body_fault(scope):
            while (await receive()).get("more_body"):  # all of it: a client that still sends would not read the answer
                pass
            await PlainTextResponse(fault, status_code=413)(scope, receive, with_policy)
        else:
            try:
                await self._app(scope, receive, with_policy)
            except Exception as error:  # of Gradio, such as for an event that the page does not have
                line = f"the request {scope['path']} failed: {type(error).__name__}: {error}"
                logger.warning(line, exc_info=logger.isEnabledFor(logging.DEBUG))
                if not begun:
                    await PlainTextResponse("the request failed: reload the page", 500)(scope, receive, with_policy)


def _body_fault(scope: Any) -> str:
    """Why the body of a request is not read; "" if it is."""
    headers = dict(scope["headers"])
    limit = MAX_UPLOAD + 2**16 if scope["path"].rstrip("/") == "/gradio_api/upload" else MAX_BODY  # + names of the files
    if b"transfer-encoding" in headers:
        return "the request does not have the header Content-Length"
    return f"the request has more than {limit:,} bytes" if int(headers.get(b"content-length", 0)) > limit else ""


def serve(
    model: Model,
    *,
    host: str,
    port: int | None,
    browser: bool,
    started: Callable[[str], None],
    stop: threading.Event | None = None,
) -> None:
    """Serve the page of a model until Ctrl-C or SIGTERM, or until `stop` is set.

    Args:
      model: of the page.
      host: address to listen on.
      port: None for the first free one from 7860.
      browser: whether to open it.
      started: called with the address of the page.
      stop: ends the server.

    Raises:
      UnavailableError: the port is in use, or the address does not exist.
    """
    _reach_directly(host)
    with tempfile.TemporaryDirectory(prefix="ddpm_jax-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of pictures that are shown and uploaded
        gradio.routes.DEFAULT_TEMP_DIR = folder  # read when it was imported; a folder is made in it
        page, closing = Page(model), threading.Event()
        blocks = page.build()
        try:
            _, address, _ = blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                inbrowser=browser,
                share=False,
                max_file_size=MAX_UPLOAD,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                pwa=False,
                enable_monitoring=False,
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
                theme=gr.themes.Default(**FONTS),
                css=CSS,
                app_kwargs={"middleware": [Middleware(OnlyThisServer, Origins(host), closing)]},
            )
        except OSError as error:  # all ports from 7860 are in use, or one became so
            raise UnavailableError(f"the page cannot be served on {host}: choose another `port` or `host`") from error
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None  # so that the folder is removed
        try:
            started(address.replace("[::]", "localhost"))
            (stop or threading.Event()).wait()
        except KeyboardInterrupt:
            pass
        finally:
            closing.set()
            page.close()
            blocks.server.config.timeout_graceful_shutdown = 1  # s; else it waits for pages that are open
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs that it does not
            blocks.close(verbose=False)
            if is_main:
                signal.signal(signal.SIGTERM, before)


def _reach_directly(host: str) -> None:
    """Let this process reach its own server without the proxy that the environment names: Gradio waits for an answer."""
    for name in ("no_proxy", "NO_PROXY"):
        others = os.environ.get(name, "").strip()
        if others != "*":
            os.environ[name] = ",".join(filter(None, (others, "127.0.0.1", "localhost", host)))
