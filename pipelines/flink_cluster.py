"""Flink on this machine: a job server with Flink inside, or a job manager and task managers of their own.

For tests, trials and single machines. The job server's jars come from Maven (``job_server.pom.xml``), those of the
cluster from the package index, each once into ``~/.cache/alertbeam``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import yaml

from messaging.child_process import HOST, ChildProcess, free_port, is_free, listens
from messaging.jars import CACHE, LOG_SETTINGS, SMALL_JAVA, jars_of, missing_programs
from pipelines.flink_jobs import FlinkError, rest
from storage.files import locked, replacing

POM: Final = Path(__file__).with_name("job_server.pom.xml")
FLINK_VERSION: Final = "1.19"
EMBEDDED: Final = "[local]"
JOB_SERVER_LOG: Final = "job_server.log"

_DISTRIBUTION: Final = "apache-flink-libraries==1.19.3"
_START_TIMEOUT_S: Final = 120.0
_INSTALL_TIMEOUT_S: Final = 1800
_DRIVER: Final = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_JOB_MANAGER: Final = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER: Final = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
# What Flink and its serializers reach into, and Java 17 closes.
_OPENED: Final = (
    "java.lang",
    "java.lang.reflect",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.util.concurrent.locks",
    "java.net",
    "java.io",
    "java.nio",
    "sun.nio.ch",
    "java.text",
    "java.time",
)
# A Flink distribution has these itself.
_OF_FLINK: Final = ("flink-", "slf4j-", "log4j-", "frocksdbjni-")
# Of no use to who only sends jobs.
_OF_SERVERS: Final = ("flink-rpc-akka-loader-", "flink-runtime-web-", "frocksdbjni-")
# Folders, manifests, signatures, modules and what is for other versions of Java.
_OF_ONE_JAR: Final = re.compile(r"/$|^META-INF/(MANIFEST\.MF$|versions/)|\.(SF|DSA|RSA)$|(^|/)module-info\.class$")
_LOG4J: Final = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %-5p %c{1} - %m%n
logger.pekko.name = org.apache.pekko
logger.pekko.level = WARN
"""


def missing_components() -> str | None:
    """Say in one sentence what this machine lacks to run Flink; None if nothing."""
    lacks = missing_programs(POM)
    return f"Flink cannot be run: {lacks}" if lacks else None


@dataclass(frozen=True)
class FlinkSettings:
    """How Flink is run.

    Attributes
    ----------
    slots : int
        Of each task manager: parts of a job that it runs at once.
    heap_mb : int
        Most memory of each Java heap, MiB.
    managed_mb : int
        Memory of each task manager for RocksDB, MiB, beside the heap.
    state_backend : str
        ``rocksdb``: states on disk, checkpoints hold what changed. ``hashmap``: states on the heap.
    retained_checkpoints : int
        So many of the last checkpoints are kept, and stay when a job is cancelled or lost.
    batch_retries : int
        So often the lost parts of a batch are done again.
    properties : tuple of pairs
        Further settings of Flink's ``config.yaml``; they win.
    """

    slots: int = 2
    heap_mb: int = 768
    managed_mb: int = 128
    state_backend: str = "rocksdb"
    retained_checkpoints: int = 2
    batch_retries: int = 3
    properties: tuple[tuple[str, Any], ...] = ()


@dataclass(eq=False)
class FlinkServer:
    """A job server, which takes pipelines; :func:`start_job_server` makes it.

    Attributes
    ----------
    job_endpoint : str
        ``host:port`` for ``--job_endpoint``.
    rest_url : str
        Flink's REST interface. With Flink inside of the job server it is there while a job runs, and for one job.
    folder : Path
        Holds checkpoints, savepoints, settings and ``job_server.log``.
    """

    job_endpoint: str
    rest_url: str
    folder: Path
    process: ChildProcess

    @property
    def pid(self) -> int:
        """Process number of the job server."""
        return self.process.pid

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints: of each job one, named by its number."""
        return self.folder / "checkpoints"

    def kill(self) -> None:
        """End the job server at once, and Flink if that is inside of it."""
        self.process.kill()

    def stop(self) -> None:
        """End the job server, and Flink if that is inside of it."""
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass(eq=False)
class FlinkCluster:
    """A job manager and its task managers; :func:`start_cluster` makes it.

    Attributes
    ----------
    rest_url : str
        Also what the job server needs: ``start_job_server(..., flink_master=cluster.master)``.
    job_manager : ChildProcess
    task_managers : list of ChildProcess
        Also those that were killed.
    """

    rest_url: str
    folder: Path
    home: Path
    jars: Path
    settings: FlinkSettings
    job_manager: ChildProcess
    task_managers: list[ChildProcess] = field(default_factory=list)

    @property
    def master(self) -> str:
        """``host:port`` for ``--flink-master``."""
        return self.rest_url.removeprefix("http://")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints: of each job one, named by its number."""
        return self.folder / "checkpoints"

    def start_task_manager(self) -> ChildProcess:
        """Start another task manager, and wait until the job manager knows it."""
        number = len(self.task_managers)
        known = self._task_managers_known()
        manager = _task_manager(self, number).start()
        self.task_managers.append(manager)
        manager.wait_until(lambda: len(self._task_managers_known() - known) > 0, _START_TIMEOUT_S)
        return manager

    def stop(self) -> None:
        """End all processes."""
        for process in (*self.task_managers, self.job_manager):
            process.stop()

    def kill(self) -> None:
        """End all processes at once."""
        for process in (*self.task_managers, self.job_manager):
            process.kill()

    def _task_managers_known(self) -> frozenset[str]:
        try:
            return frozenset(entry["id"] for entry in rest(self.rest_url, "/taskmanagers")["taskmanagers"])
        except FlinkError:
            return frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_job_server(
    folder: str | os.PathLike[str],
    *,
    flink_master: str = EMBEDDED,
    port: int | None = None,
    jars: Path | None = None,
    settings: FlinkSettings = FlinkSettings(),
) -> FlinkServer:
    """Start a job server; it takes jobs when this returns.

    Parameters
    ----------
    folder : path
        Made if absent.
    flink_master : str
        ``host:port`` of a cluster's REST interface; by default Flink runs inside of the job server.
    port : int, optional
        For jobs; a free one if absent.
    jars : Path, optional
        Folder of jars; by default those of ``job_server.pom.xml`` from the cache, fetched by Maven at first.
    settings : FlinkSettings
        Of Flink inside of the job server. A cluster has its own, but for the folder of the checkpoints.

    Raises
    ------
    FlinkError
        If a program is missing.
    messaging.child_process.ChildProcessFailed
        If it does not start.
    messaging.jars.JarsError
        If the jars cannot be fetched.
    """
    folder = Path(folder).expanduser().resolve()
    jars = jars or _jars()
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    embedded = flink_master == EMBEDDED
    rest_port = free_port()
    # What stands here is sent with each job, and would win over the settings of a cluster.
    configuration = _configuration(folder, settings, rest_port) if embedded else {}
    arguments = {
        "--flink-master": flink_master,
        "--flink-conf-dir": _write_configuration(folder / "conf", configuration),
        "--job-host": HOST,
        "--job-port": port,
        "--artifact-port": 0,
        "--expansion-port": 0,
        "--artifacts-dir": folder / "artifacts",
    }
    command = [
        *_java(settings.heap_mb, folder),
        *LOG_SETTINGS,
        *("-cp", _class_path(jars, embedded), _DRIVER),
        *(str(word) for pair in arguments.items() for word in pair),
    ]
    process = ChildProcess("the job server", command, folder / JOB_SERVER_LOG).start()
    process.wait_until(lambda: listens(port), _START_TIMEOUT_S)
    rest_url = f"http://{HOST}:{rest_port}" if embedded else f"http://{flink_master.removeprefix('http://')}"
    return FlinkServer(f"{HOST}:{port}", rest_url, folder, process)


def start_cluster(
    folder: str | os.PathLike[str],
    task_managers: int = 1,
    *,
    rest_port: int | None = None,
    home: Path | None = None,
    jars: Path | None = None,
    settings: FlinkSettings = FlinkSettings(),
) -> FlinkCluster:
    """Start a job manager and task managers, each a process that can be killed.

    Parameters
    ----------
    folder : path
        Made if absent; holds checkpoints, settings and logs.
    task_managers : int
    rest_port : int, optional
        Of Flink's REST interface; a free one if absent.
    home : Path, optional
        Flink's folder with ``lib``; by default that of :func:`flink_home`.
    jars : Path, optional
        As for :func:`start_job_server`.
    settings : FlinkSettings

    Raises
    ------
    FlinkError
        If Flink cannot be fetched, or the port is taken.
    messaging.child_process.ChildProcessFailed
        If a process does not start.
    """
    folder = Path(folder).expanduser().resolve()
    if rest_port is not None and not is_free(rest_port):
        raise FlinkError(f"{HOST}:{rest_port} is taken: name another port for Flink's REST interface")
    rest_port = rest_port or free_port()
    jars = jars or _jars()
    home = home or flink_home()
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    configuration = _configuration(folder, settings, rest_port) | {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": free_port(),
        "jobmanager.bind-host": HOST,
    }
    conf = _write_configuration(folder / "conf", configuration)
    (conf / "log4j.properties").write_text(_LOG4J)
    command = [*_flink_java(settings.heap_mb, folder, home, jars), _JOB_MANAGER, "--configDir", str(conf)]
    job_manager = ChildProcess("the job manager", command, folder / "job_manager.log", _plugins(home)).start()
    cluster = FlinkCluster(f"http://{HOST}:{rest_port}", folder, home, jars, settings, job_manager)
    try:
        job_manager.wait_until(lambda: _answers(cluster.rest_url), _START_TIMEOUT_S)
        for _ in range(task_managers):
            cluster.start_task_manager()
    except BaseException:
        cluster.kill()
        raise
    return cluster


def flink_home(cache: Path = CACHE) -> Path:
    """Give Flink's folder, with ``lib`` and ``plugins``; pip fetches it once (230 MB).

    Raises
    ------
    FlinkError
        If pip fails; the message holds the end of what it said.
    """
    folder = cache.expanduser() / _DISTRIBUTION.replace("==", "-")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                _install(folder)
    return folder / "pyflink"


def _jars() -> Path:
    if lacks := missing_components():
        raise FlinkError(lacks)
    return jars_of(POM)


def _answers(url: str) -> bool:
    try:
        return "taskmanagers" in rest(url, "/overview")
    except FlinkError:
        return False


def _configuration(folder: Path, settings: FlinkSettings, rest_port: int) -> dict[str, Any]:
    return {
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest_port,
        "rest.bind-port": str(rest_port),
        "taskmanager.numberOfTaskSlots": settings.slots,
        "taskmanager.memory.managed.size": f"{settings.managed_mb}m",
        "parallelism.default": 1,
        "state.backend.type": settings.state_backend,
        "state.backend.incremental": settings.state_backend == "rocksdb",
        "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        "state.savepoints.dir": (folder / "savepoints").as_uri(),
        "state.checkpoints.num-retained": settings.retained_checkpoints,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        # Of batches, for which Beam's job server does not set it; streams say themselves how often.
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": settings.batch_retries,
        "restart-strategy.fixed-delay.delay": "2 s",
        "io.tmp.dirs": str(folder / "tmp"),
        # Counters that are asked for are at most so old (usually 10 s).
        "metrics.fetcher.update-interval": 2000,
        # Jobs bring Beam's jars with them although the cluster has them: two copies of each class.
        "classloader.resolve-order": "parent-first",
        # A lost task manager is noticed sooner than after the usual 50 s.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 10000,
        **dict(settings.properties),
    }


def _write_configuration(folder: Path, configuration: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(configuration)))
    return folder


def _java(heap_mb: int, folder: Path) -> list[str]:
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED]
    return ["java", f"-Xmx{heap_mb}m", *SMALL_JAVA, f"-Djava.io.tmpdir={folder / 'tmp'}", *opened]


def _class_path(jars: Path, embedded: bool) -> str:
    """Jobs for a cluster bring the whole class path with them, and 165 jars take it 20 s more than one."""
    return f"{jars}/*" if embedded else str(_merged(jars))


def _merged(jars: Path) -> Path:
    """Give one jar with the content of a folder's jars beside the folder; made once."""
    merged = jars.with_name(f"{jars.name}-merged.jar")
    with locked(merged.with_name(f".{merged.name}.lock")):
        if not merged.exists():
            with replacing(merged) as file:
                _merge([jar for jar in sorted(jars.glob("*.jar")) if not jar.name.startswith(_OF_SERVERS)], file)
    return merged


def _merge(jars: Sequence[Path], target: IO[bytes]) -> None:
    """Merge jars as Java would look through them: the first of a name counts, but all name their services."""
    written: set[str] = set()
    services: dict[str, list[bytes]] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as merged:
        for jar in jars:
            with zipfile.ZipFile(jar) as content:
                for name in content.namelist():
                    if name.startswith("META-INF/services/"):
                        services.setdefault(name, []).append(content.read(name))
                    elif name not in written and not _OF_ONE_JAR.search(name):
                        written.add(name)
                        merged.writestr(name, content.read(name))
        for name, texts in services.items():
            merged.writestr(name, b"\n".join(texts))


def _flink_java(heap_mb: int, folder: Path, home: Path, jars: Path) -> list[str]:
    log = f"-Dlog4j.configurationFile={(folder / 'conf' / 'log4j.properties').as_uri()}"
    beam = sorted(str(jar) for jar in jars.glob("*.jar") if not jar.name.startswith(_OF_FLINK))
    return [*_java(heap_mb, folder), log, "-cp", ":".join([f"{home / 'lib'}/*", *beam])]


def _plugins(home: Path) -> dict[str, str]:
    return {"FLINK_PLUGINS_DIR": str(home / "plugins")}


def _task_manager(cluster: FlinkCluster, number: int) -> ChildProcess:
    folder, home, jars, settings = cluster.folder, cluster.home, cluster.jars, cluster.settings
    framework_mb, network_mb, off_heap_mb = 128, 64, 256
    memory = {
        "framework.heap": framework_mb,
        "framework.off-heap": 128,
        "task.heap": settings.heap_mb - framework_mb,
        "task.off-heap": off_heap_mb,
        "network.min": network_mb,
        "network.max": network_mb,
        "managed": settings.managed_mb,
        "jvm-metaspace": 256,
        "jvm-overhead.min": 192,
        "jvm-overhead.max": 192,
    }
    properties = {
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.resource-id": f"task-manager-{number}",
        "taskmanager.cpu.cores": f"{settings.slots}.0",
        **{
            f"taskmanager.memory.{name}{'' if name.endswith(('min', 'max')) else '.size'}": f"{size}m"
            for name, size in memory.items()
        },
    }
    command = [
        *_flink_java(settings.heap_mb, folder, home, jars),
        f"-XX:MaxDirectMemorySize={128 + off_heap_mb + network_mb}m",
        "-XX:MaxMetaspaceSize=256m",
        *(_TASK_MANAGER, "--configDir", str(folder / "conf")),
        *(word for name, value in properties.items() for word in ("-D", f"{name}={value}")),
    ]
    return ChildProcess(f"task manager {number}", command, folder / f"task_manager_{number}.log", _plugins(home))


def _install(folder: Path) -> None:
    """Let pip put the distribution into a folder, which appears when it is complete."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), _DISTRIBUTION]
    try:
        told = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
        if told.returncode:
            raise FlinkError(f"pip could not fetch {_DISTRIBUTION} (status {told.returncode}): {told.stdout[-2000:]}")
        partial.chmod(0o755)
        partial.rename(folder)
    except subprocess.TimeoutExpired as error:
        raise FlinkError(f"pip did not fetch {_DISTRIBUTION} within {_INSTALL_TIMEOUT_S} s") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
