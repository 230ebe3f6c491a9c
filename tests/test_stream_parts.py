"""Parts of the stream's graph as functions: who is classified, how dead letters of a stream are named, how it stops."""

import gc
import os
import signal
import time
from pathlib import Path
from types import GeneratorType

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners import create_runner
from stream_fixtures import in_bundles

from alerts.dead_letters import DeadLetter, read_dead_letters
from classifier.inputs import FeatureRows
from lightcurves.assembly import assemble
from lightcurves.features.compute import compute_features
from lightcurves.features.curves import Mode
from messaging.monitor import Monitor
from messaging.settings import COMMITTED, EARLIEST, ConsumerSettings, Kafka, MonitorSettings
from pipelines.running import with_bounded_metrics
from pipelines.stream import StreamJob
from pipelines.stream_command import run_until_told
from pipelines.stream_settings import ALL, XMATCH
from pipelines.stream_stop import Stop, stopped_by_signals
from simulation.light_curves import simulate_light_curves
from transforms.classify import with_detections
from transforms.counts import count, counters
from transforms.dead_letters import WriteDeadLetters
from transforms.feature_reading import FeatureBatch
from transforms.features import FeaturedLightCurves, classifiable


def test_objects_to_classify_carry_their_newest_alert() -> None:
    curves = simulate_light_curves(1, seed=4, days=150.0)
    detections = curves.detections.append_column("has_stamp", pa.repeat(True, len(curves.detections)))
    light_curves = assemble(detections, curves.non_detections)
    featured = FeaturedLightCurves(light_curves, compute_features(light_curves, Mode.ACCURATE, keep_incomplete=False))
    [batch] = classifiable(featured)
    newest = detections.to_pandas().sort_values("mjd").groupby("oid")["candid"].last()
    oids = batch.rows.oid.to_pylist()
    assert oids == featured.features.oid.to_pylist()
    assert batch.rows.candid.to_pylist() == newest[oids].tolist()
    column = batch.rows.names.index("Mean_1")
    expected = featured.features.table["Mean_1"].cast(pa.float64()).to_numpy()
    np.testing.assert_array_equal(batch.rows.values[:, column], expected)
    # The unit's name says what is inside.
    assert [again.unit for again in classifiable(featured)] == [batch.unit]
    none = FeaturedLightCurves(light_curves, compute_features(assemble(detections[:0], curves.non_detections[:0])))
    assert classifiable(none) == []


def test_objects_with_few_detections_are_left_out() -> None:
    values = np.array([[3.0, 4.0, 1.0], [np.nan, 6.0, 2.0], [2.0, np.nan, 3.0]])
    oid = pa.array(["a", "b", "c"])
    rows = FeatureRows(oid, pa.array([1, 2, 3]), ("n_det_1", "n_det_2", "Mean_1"), values)
    batch = FeatureBatch("unit", "source", rows)
    [enough] = with_detections(batch, 6)
    assert enough.rows.oid.to_pylist() == ["a", "b"]
    assert with_detections(batch, 8) == []


def test_dead_letters_of_a_stream_do_not_replace_each_other(tmp_path: Path) -> None:
    first, second = (DeadLetter("decode", "bad", "kafka:topic/0", str(n), bytes([n])) for n in range(2))
    for letters in ([first], [second], [first], [first, second]):
        root = beam.Pipeline(runner=create_runner("FnApiRunner"))
        elements = root | beam.Create([("unit", letter) for letter in letters], reshuffle=False)
        elements | WriteDeadLetters(tmp_path, "read", unbounded=True)
        root.run().wait_until_finish()
    found = sorted(tmp_path.glob("*.avro"))
    assert len(found) == 3
    assert sorted(len(list(read_dead_letters(path))) for path in found) == [1, 1, 2]


def test_a_pipeline_is_taken_up_anew_unless_it_was_asked_to_end(tmp_path: Path) -> None:
    file = tmp_path / ".stop"
    with stopped_by_signals(file) as stop:
        with stop.after(0.05):
            while not file.exists():
                time.sleep(0.01)
        assert stop.renewed()
        assert not file.exists()
        assert not stop.renewed()
        with stop.after(30.0):
            pass
        assert not stop.renewed()
        with stop.after(0.05):
            stop.ask()
            time.sleep(0.1)
        assert not stop.renewed()
        assert file.exists()


class Place:
    """Where streams run that end when they are told to, the third one for good."""

    renew_hours = 0.05 / 3600

    def __init__(self, file: Path, stop: Stop) -> None:
        self.starts: list[str] = []
        self._file, self._stop = file, stop

    def run(self, job: StreamJob, watching: Monitor) -> None:
        self.starts.append(job.consumer.start)
        if len(self.starts) == 3:
            self._stop.ask()
        give_up_at = time.monotonic() + 0.5
        while not self._file.exists() and time.monotonic() < give_up_at:
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("step", "starts"), [(XMATCH, [EARLIEST, COMMITTED, COMMITTED]), (ALL, [EARLIEST])], ids=["xmatch", "all"]
)
def test_what_is_taken_up_anew_goes_on_from_what_is_committed(step: str, starts: list[str], tmp_path: Path) -> None:
    """Not from its start once more; and not at all where the state, without a database, is all there is."""
    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group", EARLIEST)
    job = StreamJob(step, consumer, decode=list, output=tmp_path)
    with stopped_by_signals(tmp_path / ".stop") as stop:
        place = Place(tmp_path / ".stop", stop)
        run_until_told(place, job, Monitor(MonitorSettings()), stop, None)
    assert place.starts == starts


def test_the_first_signal_stops_gently_and_the_second_at_once(tmp_path: Path) -> None:
    stop = tmp_path / ".stop"
    stop.touch()
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with stopped_by_signals(stop):
            assert not stop.exists()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.exists()
            assert not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
        assert not stop.exists()
        with pytest.raises(ValueError, match="inside"), stopped_by_signals(stop):
            raise ValueError("inside")
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_metrics_of_bundles_are_put_together_at_once() -> None:
    with_bounded_metrics()
    # Pipelines of other tests have left some.
    before = {id(each) for each in _put_off()}
    pipeline = beam.Pipeline(runner=create_runner("FnApiRunner"))
    pipeline | in_bundles([(number, 0.0) for number in range(20)]) | beam.Map(_counted)
    result = pipeline.run()
    assert not [each for each in _put_off() if id(each) not in before]
    assert counters(result) == {"elements": 20}


def _put_off() -> list[GeneratorType]:
    """Metrics that are to be put together when somebody asks for them."""
    return [each for each in gc.get_objects() if isinstance(each, GeneratorType) and each.__name__ == "consolidate"]


def _counted(number: int) -> int:
    count("elements")
    return number
