"""What a pipeline on Flink may be told, and what is told when it stands still; without Flink."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions

from pipelines import flink_jobs
from pipelines.flink_jobs import FlinkError, Watchdog, WatchLimits
from pipelines.flink_options import FLINK_HELP, flink_options, is_flink, master_to_serve, named_rest_url, parallelism
from pipelines.usage import UsageError

SERVER = "--job_endpoint=localhost:8099"


def words(options: PipelineOptions) -> list[str]:
    """As they go to the job server."""
    return list(options._flags)


class TestDefaults:
    def test_stream(self) -> None:
        options = flink_options([SERVER], True)
        assert {
            "--streaming",
            "--checkpointing_interval=3000",
            "--finish_bundle_before_checkpointing",
            "--externalized_checkpoints_enabled",
            "--retain_externalized_checkpoints_on_cancellation",
            "--max_bundle_time_mills=500",
            "--max_parallelism=128",
            "--number_of_execution_retries=2147483647",
        } <= set(words(options))
        assert options.view_as(StandardOptions).streaming
        assert options.view_as(PortableOptions).environment_type == "EXTERNAL"
        assert options.view_as(PortableOptions).environment_config == "localhost:50000"
        for name in ("checkpointing_interval", "finish_bundle_before_checkpointing", "max_bundle_time_mills"):
            assert f"--{name}" in FLINK_HELP

    def test_batch(self) -> None:
        options = flink_options([], False, "localhost:8099")
        assert "--number_of_execution_retries=3" in words(options)
        assert not options.view_as(StandardOptions).streaming
        assert not [word for word in words(options) if "checkpoint" in word]

    def test_given_ones_win(self) -> None:
        given = ["--checkpointing_interval=700", "--max-bundle-time-mills=50", "--savepoint_path=file:///a=b"]
        options = flink_options(
            [*given, SERVER, "--externalized_checkpoints_enabled=false", "--environment_type=LOOPBACK"], True
        )
        found = words(options)
        assert {given[0], "--max_bundle_time_mills=50", given[2]} <= set(found)
        assert not [word for word in found if word.startswith("--externalized")]
        assert options.view_as(PortableOptions).environment_config is None

    def test_last_one_counts(self) -> None:
        options = flink_options([SERVER, "--parallelism=2", "--parallelism=3"], True)
        assert parallelism(options) == 3
        assert parallelism(flink_options([SERVER], True)) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("option", "sentence"),
        [
            ("--checkpointing_interval=0", "without checkpoints nothing is ever committed"),
            ("--checkpointing_interval=-1", "without checkpoints nothing is ever committed"),
            ("--checkpointing_interval=soon", "give a whole number"),
            ("--min_pause_between_checkpoints=-1", "must not be negative"),
            ("--checkpointing_interval", "needs a value"),
            ("--finish_bundle_before_checkpointing=false", "must stay on"),
            ("--no_finish_bundle_before_checkpointing", "write --finish_bundle_before_checkpointing=false"),
            ("--finish_bundle_before_checkpointing=perhaps", "say --finish_bundle_before_checkpointing or"),
            ("--shutdown_sources_after_idle_ms=1", "would end checkpoints"),
            ("--streaming=false", "cannot be run as a batch"),
            ("--max_bundle_time_mills=0", "must be more than 0"),
            ("--parallelism=0", "must be more than 0"),
            ("--parallelism=200", "not be more than --max_parallelism"),
            ("--direct_num_workers=2", "is for the local runner"),
            ("--direct_running_mode=multi_processing", "is for the local runner"),
            ("--flink_version=1.19", "is for a job server that Beam starts"),
            ("--environment_type=PROCESS", "needs --environment_config"),
            ("--environment_type=CLOUD", "one of LOOPBACK"),
            ("--checkpointing_intervall=5", "unknown option --checkpointing_intervall"),
            ("parallelism=5", "unexpected argument"),
            ("--job_server_timeout=long", "invalid int value"),
        ],
    )
    def test_of_streams(self, option: str, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            flink_options([SERVER, option], True)

    @pytest.mark.parametrize("option", ["--checkpointing_interval=5", "--savepoint_path=file:///a", "--streaming"])
    def test_of_batches(self, option: str) -> None:
        with pytest.raises(UsageError, match="stream"):
            flink_options([SERVER, option], False)

    def test_savepoint_needs_a_cluster(self) -> None:
        options = ["--savepoint_path=file:///a"]
        with pytest.raises(UsageError, match="begins anew all the same"):
            flink_options([*options, "--flink_master=[local]"], True, "h:1")
        assert options[0] in words(flink_options([*options, "--flink_master=h:8081"], True, "h:1"))

    def test_flink_must_be_named(self) -> None:
        with pytest.raises(UsageError, match="no job server is named"):
            flink_options([], True)
        for options in ([], ["--flink_master=[auto]"]):
            with pytest.raises(UsageError, match="Flink is not named"):
                master_to_serve(options)
        assert master_to_serve([SERVER]) is None
        assert master_to_serve(["--flink_master=[local]"]) == "[local]"
        assert master_to_serve(["--flink_master=http://host:8081"]) == "host:8081"
        # The job server has been told of it.
        assert not [word for word in words(flink_options(["--flink_master=[local]"], True, "h:1")) if "master" in word]

    def test_names_of_the_runner(self) -> None:
        assert is_flink("FlinkRunner")
        assert is_flink("apache_beam.runners.portability.flink_runner.FlinkRunner")
        assert not is_flink("FnApiRunner")


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ([], None),
        (["--flink_master=[local]"], None),
        (["--flink_master=h:8081"], "http://h:8081"),
        (["--job_endpoint=h:8099", "--flink-master=http://h:8081"], "http://h:8081"),
    ],
)
def test_rest_interface_that_is_named(options: list[str], url: str | None) -> None:
    assert named_rest_url(options) == url


class FakeFlink:
    """Flink's REST interface, for one job."""

    def __init__(self) -> None:
        self.state = "RUNNING"
        self.read = 0
        self.restarts = 0
        self.completed: dict[str, Any] | None = None
        self.answers = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> Any:
        if path == "/jobs/overview":
            other = {"jid": "other", "name": "b", "state": "FAILED", "start-time": 1}
            return {"jobs": [other, {"jid": "job", "name": "a", "state": self.state, "start-time": 2}]}
        if path == "/jobs/job":
            return {"vertices": [{"id": "v1"}, {"id": "v2"}]}
        if path == "/jobs/job/metrics?get=numRestarts":
            return [{"id": "numRestarts", "value": str(self.restarts)}]
        if path.endswith("/subtasks/metrics"):
            return [{"id": "[2]{Read_a.b}.alertbeam_read"}, {"id": "numBytesOut"}]
        if "/subtasks/metrics?" in path:
            assert "numBytesOut" not in path
            return [{"id": "[2]{Read_a.b}.alertbeam_read", "sum": float(self.read)}]
        if path == "/jobs/job/checkpoints":
            counts = {"completed": 0 if self.completed is None else 1, "failed": 2, "restored": 0}
            return {"counts": counts, "latest": {"completed": self.completed}}
        if path.endswith("/stop"):
            return {"request-id": "x"}
        assert path == "/jobs/job/savepoints/x", path
        return {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"stack-trace": "disk full"}}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        flink = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(flink.answer(self.path) if flink.answers else {"errors": ["it is starting"]}).encode()
                self.send_response(200 if flink.answers else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def complete(self, age_s: float, size: int = 1000, duration_s: float = 0.1) -> None:
        self.completed = {
            "latest_ack_timestamp": (time.time() - age_s) * 1000,
            "state_size": size,
            "end_to_end_duration": duration_s * 1000,
            "external_path": "file:///chk-1",
        }


class TestWatchdog:
    @pytest.fixture
    def flink(self) -> Iterator[FakeFlink]:
        server = FakeFlink()
        yield server
        server.close()

    def test_job_that_stands_still(self, flink: FakeFlink) -> None:
        now, lag = [0.0], [7]
        watchdog = Watchdog(flink.url, "job", lambda: lag[0], WatchLimits(silence_s=30), lambda: now[0])
        flink.complete(1)
        for at_s, read, waiting, alarm in (
            (0, 0, 7, False),
            (29, 0, 7, False),
            (31, 0, 7, True),
            (32, 5, 7, False),
            (60, 5, 9, False),
            (63, 5, 9, True),
            (64, 5, 0, False),
            (200, 5, 0, False),
            (201, 5, 1, False),
            (229, 5, 1, False),
            (231, 5, 1, True),
        ):
            now[0], flink.read, lag[0] = at_s, read, waiting
            health = watchdog.look()
            assert health.counts == {"read": 2 * read}
            assert bool(health.alarms) is alarm, (at_s, health)
        assert health.alarms == ("the job is RUNNING and has done nothing for 31 s, while 1 messages wait",)

    def test_unknown_lag_is_no_alarm(self, flink: FakeFlink) -> None:
        now = [0.0]
        watchdog = Watchdog(flink.url, "job", lambda: None, clock=lambda: now[0])
        flink.complete(1)
        watchdog.look()
        now[0] = 1000.0
        assert watchdog.look().alarms == ()

    def test_checkpoints(self, flink: FakeFlink) -> None:
        now = [0.0]
        limits = WatchLimits(checkpoint_age_s=60, checkpoint_bytes=10_000, checkpoint_s=30)
        watchdog = Watchdog(flink.url, "job", lambda: 0, limits, lambda: now[0])
        assert watchdog.look().alarms == ()
        now[0] = 61.0
        (alarm,) = watchdog.look().alarms
        assert alarm == "no checkpoint was complete for 61 s (2 failed): nothing is committed"
        flink.complete(10)
        assert watchdog.look().alarms == ()
        assert watchdog.look().checkpoints.path == "file:///chk-1"
        flink.complete(100, size=20_000_000, duration_s=31)
        age, size, duration = watchdog.look().alarms
        assert "was complete for 10" in age
        assert "holds 20 MB" in size
        assert "took 31 s" in duration

    def test_states(self, flink: FakeFlink) -> None:
        watchdog = Watchdog(flink.url, "job", lambda: 0)
        assert watchdog.look().state == "RUNNING"
        flink.state = "FAILED"
        assert watchdog.look().state == "FAILED"
        flink.answers = False
        health = watchdog.look()
        (alarm,) = health.alarms
        assert health.state == "UNKNOWN"
        assert "Flink does not answer: " in alarm
        assert "503" in alarm
        assert "it is starting" in alarm
        flink.answers = True
        health = Watchdog(flink.url, "job of a Flink that is no more", lambda: 0).look()
        assert (health.state, health.alarms) == ("GONE", ("Flink was started anew, and does not know the job",))

    def test_nobody_answers(self, flink: FakeFlink) -> None:
        flink.close()
        health = Watchdog(flink.url, "job", lambda: 3).look()
        assert (health.state, health.lag) == ("UNKNOWN", 3)
        (alarm,) = health.alarms
        assert "Connection refused" in alarm

    def test_restarts(self, flink: FakeFlink) -> None:
        flink.complete(1)
        flink.restarts = 4
        watchdog = Watchdog(flink.url, "job", lambda: 0)
        # What was before nobody looked is no news.
        assert (watchdog.look().alarms, watchdog.look().restarts) == ((), 4)
        flink.state = "RESTARTING"
        assert watchdog.look().alarms == ("the job failed and waits to start again",)
        flink.state, flink.restarts = "RUNNING", 6
        (alarm,) = watchdog.look().alarms
        assert alarm == "the job failed and started again since the last look; it did 6 times in all"
        assert watchdog.look().alarms == ()

    def test_refused_savepoint(self, flink: FakeFlink) -> None:
        with pytest.raises(FlinkError, match="no savepoint of job job: disk full"):
            flink_jobs.stop(flink.url, "job")
        assert [job.job_id for job in flink_jobs.jobs(flink.url)] == ["job", "other"]
