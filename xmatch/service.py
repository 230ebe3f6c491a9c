"""The HTTP service: CrossWave's interface on local catalogues.

`create_app` makes the application, `serve` runs it. The work is done elsewhere: `xmatch.service_requests` reads and
checks what is asked, `xmatch.service_answers` answers it.
"""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.supervisors import Multiprocess

from xmatch import service_docs
from xmatch.catalog import Catalog, open_catalog
from xmatch.identifiers import open_identifiers
from xmatch.service_answers import Answer, Answers
from xmatch.service_catalogs import ServedCatalog
from xmatch.service_metrics import ENDPOINTS, ServiceMetrics
from xmatch.service_requests import (
    Refused,
    ServiceSettings,
    read_bulk_cone,
    read_bulk_metadata,
    read_cone,
    read_metadata,
    too_large,
)

UPPER_PREFIX = "/upper"

# A search up to this is answered between two turns of the event loop; a thread would cost more than the search.
_SMALL_RADIUS_ARCSEC = 60.0
_SMALL_NEIGHBORS = 100
_BACKLOG = 2048
_DESCRIPTION = (
    "Cone searches and metadata of local catalogues over CrossWave's HTTP interface. Angles are in degrees, radii "
    "and distances in arcseconds. The same paths below /upper answer with the upper-case JSON of the older CrossWave."
)
_NAMES = {f"/v1/{name}": name for name in ENDPOINTS} | {f"/{name}": name for name in ENDPOINTS}


def create_app(
    catalogs: Sequence[Catalog | str | Path],
    settings: ServiceSettings | None = None,
    *,
    index_folder: str | Path | None = None,
    metrics_folder: str | Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> FastAPI:
    """Make the application; builds identifier indexes that are not there and compiles what is not compiled.

    Parameters
    ----------
    catalogs : sequence of Catalog or path
        In the order of their groups in an answer.
    settings : ServiceSettings, optional
    index_folder : path, optional
        Where the identifier indexes lie; by default in the folder of each catalogue.
    metrics_folder : path, optional
        Folder through which several processes sum their metrics.
    report : function of str
        Told what takes long.

    Raises
    ------
    CatalogError
        If a catalogue cannot be opened, or its index not be written.
    ValueError
        If the settings cannot be, or two catalogues have the same name.
    """
    settings = settings or ServiceSettings()
    opened = [catalog if isinstance(catalog, Catalog) else open_catalog(catalog) for catalog in catalogs]
    served = [ServedCatalog(catalog, open_identifiers(catalog, index_folder, report=report)) for catalog in opened]
    answers = Answers(served, settings)
    answers.warm_up()
    metrics = ServiceMetrics(metrics_folder)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="search")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()

    app = FastAPI(
        title="alertbeam catalogue service",
        version=_version(),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    _add_information(app, answers, metrics)
    _add_searches(app, "", settings.json_format, answers, pool)
    _add_searches(app, UPPER_PREFIX, "upper", answers, pool)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_Gate, metrics=metrics, origins=settings.allowed_origins)
    return app


def serve(
    catalogs: Sequence[str | Path],
    settings: ServiceSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    index_folder: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; running requests are finished first. Must run in the main thread.

    Parameters
    ----------
    catalogs : sequence of path
    settings : ServiceSettings, optional
    host, port : str, int
        Address; port 0 takes a free one, which is reported.
    workers : int
        Number of processes; they share the catalogues through the page cache.
    index_folder : path, optional
        As in `create_app`.
    report : function of str

    Raises
    ------
    OSError
        If the address cannot be had.
    CatalogError, ValueError
        As `create_app`.
    """
    settings = settings or ServiceSettings()
    listener = _bind(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    with listener, tempfile.TemporaryDirectory(prefix="alertbeam-service-") as folder:
        app = create_app(catalogs, settings, index_folder=index_folder, report=report)
        for path in catalogs:
            catalog = open_catalog(path)
            report(f"{catalog.name} {catalog.version}".strip() + f": {catalog.rows:,} sources")
        # Not before: until now clients are better refused than kept waiting.
        listener.listen(_BACKLOG)
        report(f"serving at {address}, documentation at {address}/docs")
        if workers == 1:
            uvicorn.Server(server_config(app, settings)).run(sockets=[listener])
            return
        # A process of its own makes its own application; the indexes are there by now.
        factory = partial(create_app, catalogs, settings, index_folder=index_folder, metrics_folder=folder)
        Multiprocess(server_config(factory, settings, workers, factory=True), sockets=[listener]).run()


def server_config(
    app: Callable[..., Any], settings: ServiceSettings, workers: int = 1, *, factory: bool = False
) -> uvicorn.Config:
    """Configuration of uvicorn."""
    return uvicorn.Config(
        app,
        factory=factory,
        workers=workers,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def _add_information(app: FastAPI, answers: Answers, metrics: ServiceMetrics) -> None:
    """Add the paths that tell about the service."""

    @app.get("/ping", description="Answers `pong`.", response_class=Response)
    async def ping() -> Response:
        return Response("pong", media_type="text/plain")

    @app.get("/health", description="The catalogues that are served.", response_class=Response)
    async def health() -> Response:
        catalogs = [
            {
                "name": served.name,
                "version": served.catalog.version,
                "created": served.catalog.created,
                "rows": served.catalog.rows,
            }
            for served in answers.catalogs
        ]
        return _json({"status": "ok", "version": app.version, "catalogs": catalogs})

    @app.get("/metrics", description="Counts in the text format of Prometheus.", response_class=Response)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(service_docs.docs_page(app.openapi()), media_type="text/html")


def _add_searches(app: FastAPI, prefix: str, form: str, answers: Answers, pool: ThreadPoolExecutor) -> None:
    """Add the paths that search, with the JSON of one form."""
    settings, served = answers.settings, answers.names

    async def in_thread(work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def add(method: str, name: str, description: str, documentation: dict[str, Any], handler: _Handler) -> None:
        async def endpoint(request: Request) -> Response:
            answer = await handler(request)
            request.scope["alertbeam"] = (answer.coordinates, answer.matches)
            return Response(status_code=204) if answer.body is None else _json_bytes(answer.body)

        app.add_api_route(
            f"{prefix}/v1/{name}",
            endpoint,
            methods=[method],
            name=f"{form} {name}",
            operation_id=f"{prefix.removeprefix('/')}{name}",
            description=description,
            response_class=Response,
            responses=documentation["responses"],
            openapi_extra={key: value for key, value in documentation.items() if key != "responses"},
        )

    async def cone(request: Request) -> Answer:
        asked = read_cone(_query(request), settings, served)
        if asked.radius_arcsec <= _SMALL_RADIUS_ARCSEC and asked.neighbors <= _SMALL_NEIGHBORS:
            return answers.cone(asked, form)
        return await in_thread(lambda: answers.cone(asked, form))

    async def bulk_cone(request: Request) -> Answer:
        body = await _read_body(request, settings.max_body_bytes)
        return await in_thread(lambda: answers.bulk_cone(read_bulk_cone(body, settings, served), form))

    async def metadata(request: Request) -> Answer:
        return answers.metadata(read_metadata(_query(request), served), form)

    async def bulk_metadata(request: Request) -> Answer:
        body = await _read_body(request, settings.max_body_bytes)
        return await in_thread(lambda: answers.bulk_metadata(read_bulk_metadata(body, settings, served), form))

    add("GET", "conesearch", "Sources around a position.", service_docs.CONE, cone)
    add("POST", "bulk-conesearch", "Sources around many positions.", service_docs.BULK_CONE, bulk_cone)
    add("GET", "metadata", "Metadata of a source.", service_docs.METADATA, metadata)
    add("POST", "bulk-metadata", "Metadata of many sources.", service_docs.BULK_METADATA, bulk_metadata)


_Handler = Callable[[Request], Awaitable[Answer]]


class _Gate:
    """Counts requests, and refuses those of web pages elsewhere that are not allowed, as CrossWave does."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, origins: Sequence[str]):
        self._app = app
        self._metrics = metrics
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        status = 500
        started = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if origin is not None and status != 403:
                    allowed = (b"access-control-allow-origin", origin)
                    message["headers"] = [*message.get("headers", []), allowed, (b"vary", b"Origin")]
            await send(message)

        try:
            if origin is not None and not self._admits(
                origin.decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
            ):
                await Response(status_code=403)(scope, receive, sending)
            elif origin is not None and scope["method"] == "OPTIONS":
                await _preflight(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            path = scope["path"].removeprefix(UPPER_PREFIX)
            coordinates, matches = scope.get("alertbeam", (0, 0))
            self._metrics.add(_NAMES.get(path, "other"), status, time.perf_counter() - started, coordinates, matches)

    def _admits(self, origin: str, host: str) -> bool:
        return "*" in self._origins or origin in self._origins or origin.partition("://")[2] == host


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    allowed = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "Content-Type"}
    await Response(status_code=204, headers=allowed)(scope, receive, send)


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
    return bytes(body)


def _query(request: Request) -> dict[str, str]:
    """Parameters of the URL; the first one of a name counts."""
    return dict(reversed(request.query_params.multi_items()))


def _json(value: Any, status: int = 200) -> Response:
    return _json_bytes(orjson.dumps(value), status)


def _json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json; charset=utf-8")


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _json(error.body, error.status)


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods, as CrossWave answers them."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return Response("404 page not found", 404, media_type="text/plain")
    return Response(str(error.detail), error.status_code, media_type="text/plain")


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {os.strerror(error.errno or 0)}") from error
    listener.set_inheritable(True)
    return listener


def _version() -> str:
    try:
        return version("alertbeam")
    except PackageNotFoundError:
        return "unknown"
