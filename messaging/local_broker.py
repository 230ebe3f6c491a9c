"""A Kafka broker of our own in a folder, for tests and trials: one node without ZooKeeper, on this machine only.

Its jars come from Maven (``pom.xml``), once. Messages that it has taken outlast ``kill -9``, though not a power cut:
like any Kafka, it leaves the writing to the disk to the system.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from messaging.admin import AdminError, cluster_at
from messaging.child_process import HOST, ChildProcess, ChildProcessFailed, free_port, is_free, listens
from messaging.jars import LOG_SETTINGS, SMALL_JAVA, jars_of, missing_programs
from storage.files import replacing

# ZTF's packets hold some 60 kB; a broker for trials must take what a consumer is to be tried with.
MAX_MESSAGE_BYTES: Final = 12 << 20
LOG: Final = "broker.log"

_POM: Final = Path(__file__).with_name("pom.xml")
_NODE: Final = 1
_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 20.0
_START_ATTEMPTS: Final = 5
_SECONDS_FOR_ANSWER: Final = 1.0
# Of the storage that is made; it does not keep them.
_ANY_PORTS: Final = (9092, 9093)
_PORT_TAKEN: Final = "Address already in use"
_DATA: Final = "data"
_PROPERTIES: Final = "server.properties"
_LOCK: Final = "broker.lock"


class LocalBrokerError(RuntimeError):
    """The broker cannot be used; the message says why."""


def missing_components() -> str | None:
    """Say in one sentence what this machine lacks to run a broker; None if nothing."""
    lacks = missing_programs(_POM)
    return f"a Kafka broker of our own cannot be run: {lacks}" if lacks else None


@dataclass(frozen=True)
class BrokerOptions:
    """How a broker is run.

    Attributes
    ----------
    heap_mb : int
        Most memory of Java's heap, MiB.
    partitions : int
        Of a topic that is made because somebody writes to it.
    max_message_bytes : int
        A larger message is refused.
    auto_create_topics : bool
        Make a topic when somebody writes to it.
    properties : tuple of pairs of str
        Further properties of Kafka's ``server.properties``; they win.
    """

    heap_mb: int = 512
    partitions: int = 1
    max_message_bytes: int = MAX_MESSAGE_BYTES
    auto_create_topics: bool = True
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False)
class LocalBroker:
    """The broker of one folder; :func:`start_broker` makes it.

    It ends at the end of a ``with`` block, and with this process in any case.

    Attributes
    ----------
    address : str
        ``host:port`` for clients.
    folder : Path
        Holds messages, settings and ``broker.log``.
    """

    folder: Path
    port: int
    jars: Path
    options: BrokerOptions
    _process: ChildProcess = field(init=False, repr=False)

    def __post_init__(self) -> None:
        command = [*_java(self.jars, self.options.heap_mb), "kafka.Kafka", _PROPERTIES]
        self._process = ChildProcess(f"the broker in {self.folder}", command, self.folder / LOG)

    @property
    def address(self) -> str:
        """What clients call the broker."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process number; of the last process if it has ended."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Say whether the broker's process lives."""
        return self._process.running

    def start(self) -> None:
        """Start the broker on its folder and port, unless it runs, and wait until it answers.

        Raises
        ------
        LocalBrokerError
            If it does not start; the message holds the end of its log.
        """
        if self.running:
            return
        # What started the last process has the folder's lock until it has ended too.
        self.kill()
        if not is_free(self.port):
            raise LocalBrokerError(f"{self.address}: {_PORT_TAKEN}; name another port")
        try:
            with _locked(self.folder) as lock:
                _format(self.folder, self.jars, self.options)
                _write_properties(self.folder, _DATA, self.port, free_port(), self.options)
                cluster = _cluster_of(self.folder)
                self._process.start([lock])
            self._process.wait_until(lambda: listens(self.port) and _answers(self.address, cluster), _START_TIMEOUT_S)
        except ChildProcessFailed as error:
            raise LocalBrokerError(str(error)) from error

    def stop(self) -> None:
        """End the broker as its operator would, so that its next start has nothing to mend."""
        self._process.stop(_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End the broker at once (``kill -9``)."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_broker(
    folder: str | os.PathLike[str],
    port: int | None = None,
    *,
    jars: Path | None = None,
    options: BrokerOptions = BrokerOptions(),
) -> LocalBroker:
    """Start a broker on a folder, which keeps its messages for the next start.

    Parameters
    ----------
    folder : path
        Made if absent.
    port : int, optional
        A free one if absent.
    jars : Path, optional
        Folder of Kafka's jars; by default those of ``pom.xml`` from the cache, fetched by Maven at first.
    options : BrokerOptions

    Returns
    -------
    LocalBroker
        Answers already; to be used in a ``with`` block.

    Raises
    ------
    LocalBrokerError
        If it does not start.
    messaging.jars.JarsError
        If the jars cannot be fetched.
    """
    folder = Path(folder).expanduser().resolve()
    if jars is None:
        if lacks := missing_components():
            raise LocalBrokerError(lacks)
        jars = jars_of(_POM)
    folder.mkdir(parents=True, exist_ok=True)
    if port is not None:
        broker = LocalBroker(folder, port, jars, options)
        broker.start()
        return broker
    for left in reversed(range(_START_ATTEMPTS)):
        broker = LocalBroker(folder, free_port(), jars, options)
        try:
            broker.start()
            break
        except LocalBrokerError as error:
            # Another process may have taken the port in the meantime.
            if _PORT_TAKEN not in str(error) or not left:
                raise
    return broker


def _answers(address: str, cluster: str) -> bool:
    """Say whether the broker of a cluster answers; another one could have the port."""
    try:
        return cluster_at(address, _SECONDS_FOR_ANSWER) == cluster
    except AdminError:
        return False


def cluster_name() -> str:
    """Name of a new cluster, as Kafka wants it; one that begins with a hyphen would be taken for an option."""
    while True:
        name = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not name.startswith("-"):
            return name


def _format(folder: Path, jars: Path, options: BrokerOptions) -> None:
    """Make the data folder under another name first: what a killed process left there never counts as one."""
    if (folder / _DATA).exists():
        return
    partial = f"{_DATA}.partial"
    shutil.rmtree(folder / partial, ignore_errors=True)
    _write_properties(folder, partial, *_ANY_PORTS, options)
    cluster = cluster_name()
    arguments = ["format", "--config", _PROPERTIES, "--cluster-id", cluster]
    told = subprocess.run(
        [*_java(jars, options.heap_mb), "kafka.tools.StorageTool", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if told.returncode:
        raise LocalBrokerError(f"the storage of a broker cannot be made in {folder}: {told.stdout[-2000:]}")
    (folder / partial).rename(folder / _DATA)


def _cluster_of(folder: Path) -> str:
    """Name that the storage was given."""
    lines = (folder / _DATA / "meta.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["cluster.id"]


def _write_properties(folder: Path, data: str, port: int, controller_port: int, options: BrokerOptions) -> None:
    most = str(options.max_message_bytes)
    properties = {
        "process.roles": "broker,controller",
        "node.id": str(_NODE),
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"{_NODE}@{HOST}:{controller_port}",
        # Relative to the folder: a comma in its path would end the path.
        "log.dirs": data,
        "num.partitions": str(options.partitions),
        "auto.create.topics.enable": str(options.auto_create_topics).lower(),
        "message.max.bytes": most,
        "replica.fetch.max.bytes": most,
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # As long as the session of a killed broker lasts (usually 9 s), the controller refuses the next one.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        **dict(options.properties),
    }
    text = "".join(f"{name}={value}\n" for name, value in properties.items())
    with replacing(folder / _PROPERTIES) as file:
        file.write(text.encode())


def _java(jars: Path, heap_mb: int) -> list[str]:
    return ["java", f"-Xmx{heap_mb}m", *SMALL_JAVA, *LOG_SETTINGS, "-cp", f"{jars}/*"]


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock a folder for as long as any process has the descriptor.

    Kafka's own lock comes too late: by then a second broker has written to the metadata of the first.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalBrokerError(f"a broker runs in {folder} already") from error
        yield descriptor
    finally:
        os.close(descriptor)
