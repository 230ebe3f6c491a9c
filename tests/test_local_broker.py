"""A broker of our own: it keeps its messages when it dies, and dies with who started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource
from kafka_fixtures import consume_all, produce

from messaging import child_process, jars
from messaging.admin import AdminError, cluster_at, create_topic
from messaging.child_process import free_port, lives
from messaging.jars import JarsError, jars_folder, jars_of, missing_programs
from messaging.local_broker import LocalBroker, LocalBrokerError, cluster_name, start_broker
from pipelines.cli import main

PROJECT = Path(__file__).resolve().parents[1]
POM = PROJECT / "messaging" / "pom.xml"


def program(folder: Path, name: str, script: str) -> Path:
    """Write a shell script to a folder of programs."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def gone(pid: int, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while lives(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class TestBroker:
    def test_messages(self, kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
        name = topic(3)
        sent = [(b"%d" % (i % 7), b"value %d" % i) for i in range(100)]
        produce(kafka_broker.address, name, sent)
        assert sorted(consume_all(kafka_broker.address, name)) == sorted(sent)
        assert consume_all(kafka_broker.address, topic()) == []

    def test_large_messages(self, kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
        name = topic()
        produce(kafka_broker.address, name, [(None, bytes(10 << 20))])
        assert [len(value or b"") for _, value in consume_all(kafka_broker.address, name)] == [10 << 20]

    def test_topics(self, kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
        name = topic(2, max_message_bytes="1234")
        assert not create_topic(kafka_broker.address, name, 2)
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        client = AdminClient({"bootstrap.servers": kafka_broker.address})
        assert client.describe_configs([resource])[resource].result()["max.message.bytes"].value == "1234"
        with pytest.raises(AdminError, match="no/name cannot be made"):
            create_topic(kafka_broker.address, "no/name")
        produce(kafka_broker.address, f"{name}_new", [(None, b"made by writing")])
        assert consume_all(kafka_broker.address, f"{name}_new") == [(None, b"made by writing")]

    def test_kill_and_start_again(self, kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
        """On the same port, with the messages; and started by a thread that is gone since."""
        name, address, pid = topic(2), kafka_broker.address, kafka_broker.pid
        sent = [(b"%d" % i, b"before") for i in range(20)]
        produce(address, name, sent)
        kafka_broker.kill()
        assert gone(pid)
        assert not kafka_broker.running
        with pytest.raises(AdminError, match="no broker answers at"):
            cluster_at(address, 0.5)
        thread = threading.Thread(target=kafka_broker.start)
        thread.start()
        thread.join()
        assert kafka_broker.pid != pid
        assert kafka_broker.address == address
        kafka_broker.start()
        produce(address, name, [(b"x", b"after")])
        assert sorted(consume_all(address, name)) == sorted([*sent, (b"x", b"after")])

    def test_folder_and_port_are_taken(self, kafka_broker: LocalBroker, tmp_path: Path) -> None:
        with pytest.raises(LocalBrokerError, match="already in use"):
            start_broker(tmp_path, kafka_broker.port)
        with pytest.raises(LocalBrokerError, match=r"runs in .* already"):
            start_broker(kafka_broker.folder)
        assert cluster_at(kafka_broker.address)

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a go-between that is killed leaves its program")
    def test_ends_with_its_go_between(self, tmp_path: Path) -> None:
        process, pid = started_by_child(tmp_path)
        process.kill()
        process.wait()
        assert gone(pid)


def started_by_child(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A program below the go-between: that process and the program's number."""
    command = [sys.executable, "-I", "-S", "messaging/child.py", str(os.getpid()), "sleep", "1000"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as told:
        return process, int(told.readline())


def test_go_between_ends_with_its_program(tmp_path: Path) -> None:
    process, pid = started_by_child(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(pid, signal.SIGTERM)
    assert process.wait(20) == signal.SIGTERM


def test_command_and_its_end(kafka_components: None, tmp_path: Path) -> None:
    """The broker ends with the command however that ends, and the folder can be used again."""
    command = [sys.executable, "-m", "pipelines.cli", "broker", "--data", str(tmp_path / "data"), "--port", "0"]
    command += ["--topics", "one,two", "--partitions", "3"]
    for end, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            if end == signal.SIGTERM:
                address = process.stdout.readline().split()[3].strip(";")
                topics = AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=30).topics
                assert {name: len(topics[name].partitions) for name in topics} == {"one": 3, "two": 3}
            below = below_of(process.pid)
        finally:
            process.send_signal(end)
            process.communicate(timeout=60)
        assert process.returncode == status
        assert all(gone(pid) for pid in below)


def below_of(pid: int) -> list[int]:
    """Number of the go-between and of the broker below a process, once they have begun."""
    deadline = time.monotonic() + 60
    while True:
        below = psutil.Process(pid).children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            if len(below) == 2 and "kafka.Kafka" in below[1].cmdline():
                return [process.pid for process in below]
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestWhatIsMissing:
    """With programs of our own on the PATH."""

    @pytest.fixture
    def bin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        return folder

    def test_java(self, bin: Path, tmp_path: Path) -> None:
        assert "no 'java'" in str(missing_programs(POM, tmp_path))
        program(bin, "mvn", "exit 0")
        for version, enough in [
            ('openjdk version "17.0.15" 2025-04-15', True),
            ('openjdk version "25-ea" 2026-01-01', True),
            ('openjdk version "11.0.2" 2019-01-15', False),
            ('java version "1.8.0_392"', False),
            ("something new", True),
        ]:
            program(bin, "java", f"echo '{version}' >&2")
            said = missing_programs(POM, tmp_path)
            assert (said is None) == enough, said
            assert enough or "17 or newer" in str(said)

    def test_maven_is_needed_once(self, bin: Path, tmp_path: Path) -> None:
        program(bin, "java", "echo 'openjdk version \"21\"' >&2")
        assert "no 'mvn'" in str(missing_programs(POM, tmp_path))
        with pytest.raises(JarsError, match="no 'mvn'"):
            jars_of(POM, tmp_path)
        jars_folder(POM, tmp_path).mkdir()
        assert missing_programs(POM, tmp_path) is None
        assert jars_of(POM, tmp_path) == jars_folder(POM, tmp_path)

    def test_maven_fails(self, bin: Path, tmp_path: Path) -> None:
        """That is an error where Java and Maven are, and leaves nothing that a later call takes for the jars."""
        program(bin, "mvn", "echo 'Could not transfer artifact'; exit 1")
        with pytest.raises(JarsError, match=r"status 1.*Could not transfer artifact"):
            jars_of(POM, tmp_path / "cache")
        program(bin, "mvn", "exit 0")
        with pytest.raises(JarsError, match="status 0"):
            jars_of(POM, tmp_path / "cache")
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]

    def test_one_process_fetches(self, bin: Path, tmp_path: Path) -> None:
        log = tmp_path / "calls"
        script = f'echo call >> {log}; /bin/sleep 0.2; for last; do :; done; : > "${{last#*=}}/some.jar"'
        program(bin, "mvn", script)
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(jars_of(POM, tmp_path / "c"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [jars_folder(POM, tmp_path / "c")] * 4
        assert [path.name for path in found[0].iterdir()] == ["some.jar"]
        assert log.read_text() == "call\n"

    def test_another_pom_has_another_folder(self, tmp_path: Path) -> None:
        other = tmp_path / "pom.xml"
        other.write_text(POM.read_text().replace("1.7.36", "1.7.35"))
        assert jars_folder(POM).name.startswith("kafka-3.")
        assert jars_folder(other).name.rpartition("-")[0] == jars_folder(POM).name.rpartition("-")[0]
        assert jars_folder(other) != jars_folder(POM)


def test_command_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jars, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["broker", "--data", str(tmp_path / "data")]) == 2
    assert "there is no 'java'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--port", "70000"], ["--partitions", "0"], ["--heap-mb", "0"]], ids=" ".join)
def test_wrong_usage(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "--data", str(tmp_path / "data"), *option]) == 2
    assert option[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ports_are_below_those_of_outgoing_connections() -> None:
    assert child_process._PORTS[0] <= free_port() < child_process._PORTS[1]
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
    assert not limits.exists() or child_process._PORTS[1] <= int(limits.read_text().split()[0])


def test_names_of_clusters_are_no_options() -> None:
    assert not [name for name in (cluster_name() for _ in range(2000)) if name.startswith("-")]
