"""A small sky in catalogues and a running service on it, for the tests of the service."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn

from xmatch.catalog import Catalog, build_catalog
from xmatch.identifiers import open_identifiers
from xmatch.service import create_app, server_config
from xmatch.service_answers import Answers
from xmatch.service_catalogs import ServedCatalog
from xmatch.service_requests import ServiceSettings

ARCSEC = 1.0 / 3600.0


def table_catalog(folder: Path, name: str, columns: Mapping[str, Sequence[Any]], version: str = "1") -> Catalog:
    """Build a catalogue of all the given columns."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / "sources.parquet")
    return build_catalog(
        folder / "sources.parquet", folder / "catalog", name=name, version=version, columns=list(columns)
    )


def answers_of(*catalogs: Catalog, settings: ServiceSettings | None = None) -> Answers:
    """Answers without HTTP."""
    served = [ServedCatalog(catalog, open_identifiers(catalog)) for catalog in catalogs]
    return Answers(served, settings or ServiceSettings())


@contextmanager
def running_server(catalogs: Sequence[Catalog], **settings: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """A service on a free port of this machine: its address and the server."""
    chosen = ServiceSettings(**settings)
    server = uvicorn.Server(server_config(create_app(catalogs, chosen), chosen))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # A loop of its own: uvicorn's run() would ask for signals, which only the main thread gets.
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
