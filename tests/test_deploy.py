"""What deploy/ holds agrees with itself and with the program: all that can be checked without running it."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lightcurves.features.curves import Mode
from messaging.monitor import Committed, Monitor
from messaging.settings import MonitorSettings
from pipelines.cli import parser
from pipelines.flink_cluster import _OPENED, FLINK_VERSION, POM
from pipelines.flink_options import WORKER_POOL, flink_options, is_flink
from pipelines.flink_stream import _SECONDS_TO_STOP, FlinkStream
from pipelines.stream_environment import VARIABLES, read_stream_environment
from pipelines.stream_job import chosen

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "operations.md"
OURS = "alertbeam:"
# Of Flink 1.19, scope "jobmanager.job" and "Status.JVM" of its documentation, as its Prometheus reporter writes them.
FLINK_METRICS = {
    "flink_jobmanager_job_lastCheckpointDuration",
    "flink_jobmanager_job_lastCheckpointFullSize",
    "flink_jobmanager_job_lastCheckpointSize",
    "flink_jobmanager_job_numRestarts",
    "flink_jobmanager_job_numberOfCompletedCheckpoints",
    "flink_jobmanager_job_numberOfFailedCheckpoints",
    "flink_jobmanager_Status_JVM_Memory_Heap_Used",
    "flink_taskmanager_Status_JVM_Memory_Heap_Used",
}
# Prometheus' own: whether a scrape succeeded.
OTHER_METRICS = {"up"}
# Of Flink 1.19, whose image they are for.
FLINK_SETTINGS = {
    "env.java.opts.all",
    "execution.checkpointing.externalized-checkpoint-retention",
    "high-availability.storageDir",
    "high-availability.type",
    "jobmanager.memory.process.size",
    "jobmanager.rpc.address",
    "metrics.reporter.prom.factory.class",
    "metrics.reporter.prom.port",
    "restart-strategy.type",
    "state.backend.incremental",
    "state.backend.type",
    "state.checkpoints.dir",
    "state.checkpoints.num-retained",
    "state.savepoints.dir",
    "taskmanager.memory.process.size",
    "taskmanager.numberOfTaskSlots",
}
OPERATOR_SETTINGS = {"job.autoscaler.enabled"}
# How many documents of each kind the manifests hold; a kind that is not here is a mistake.
KINDS = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "FlinkDeployment": "flink.apache.org/v1beta1",
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "PersistentVolumeClaim": "v1",
    "Secret": "v1",
    "Service": "v1",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


@cache
def compose() -> dict[str, Any]:
    return documents(DEPLOY / "compose.yaml")[0]


@cache
def manifests() -> list[tuple[Path, dict[str, Any]]]:
    return [
        (path, document)
        for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
        for document in documents(path)
        if document["kind"] != "Kustomization"
    ]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    found = [document for _, document in manifests() if document["kind"] == kind]
    return {each["metadata"].get("name", each["metadata"].get("generateName")): each for each in found}


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def substituted(value: Any, variables: dict[str, str]) -> Any:
    """Text of compose with its ``${NAME:-default}`` filled in."""
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)


def test_everything_that_is_yaml_or_json_can_be_read() -> None:
    paths = [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")]
    assert len(paths) >= 14
    for path in paths:
        assert documents(path), path
    for path in DEPLOY.rglob("*.json"):
        assert json.loads(path.read_text()), path


# Compose


def test_services_of_compose_refer_to_what_is_there() -> None:
    services, volumes = compose()["services"], compose()["volumes"]
    used = set()
    for name, service in services.items():
        profiles = set(service.get("profiles", []))
        for other in service.get("depends_on", {}):
            # What a service needs is started with it, or always.
            needed = set(services[other].get("profiles", []))
            assert not needed or profiles & needed, f"{name} needs {other}"
        condition = {other: told["condition"] for other, told in service.get("depends_on", {}).items()}
        for other, wanted in condition.items():
            if wanted == "service_healthy":
                assert "test" in services[other].get("healthcheck", {}), f"{name} waits for the health of {other}"
        mode = service.get("network_mode", "")
        if mode:
            assert mode.removeprefix("service:") in services
            assert mode.removeprefix("service:") in service["depends_on"]
            assert "ports" not in service
        for volume in service.get("volumes", []):
            source, place = substituted(volume, {}).split(":")[:2]
            assert place.startswith("/")
            if source.startswith("."):
                folder = DEPLOY / source
                assert folder.is_dir() or source.split("/")[1] in ("catalogs", "models"), f"{name}: {source}"
            else:
                used.add(source)
        for file in service.get("env_file", []):
            assert (DEPLOY / file.replace("secrets/", "secrets.example/")).is_file()
    assert used == set(volumes)


def test_services_of_compose_come_back_and_are_reachable_from_here_only() -> None:
    for name, service in compose()["services"].items():
        expected = "no" if name == "flink-folders" else "unless-stopped"
        assert service["restart"] == expected, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_variables_of_compose_are_explained() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)", text))
    assert names == set(env_file(DEPLOY / ".env.example"))


def test_compose_has_the_fields_of_its_specification() -> None:
    """Those that are used here: a misspelt one would be refused when it is too late."""
    services = {
        *("command", "depends_on", "entrypoint", "env_file", "environment", "healthcheck", "image", "init", "logging"),
        *("network_mode", "ports", "profiles", "restart", "shm_size", "stop_grace_period", "user", "volumes"),
    }
    told = compose()
    assert {name for name in told if not name.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in told["services"].items():
        assert set(service) <= services, name
        health = service.get("healthcheck", {})
        assert set(health) <= {"interval", "retries", "start_period", "test", "timeout"}, name
        for key in ("interval", "start_period", "timeout"):
            assert re.fullmatch(r"\d+[sm]", health.get(key, "1s")), name
        conditions = {each["condition"] for each in service.get("depends_on", {}).values()}
        assert conditions <= {"service_completed_successfully", "service_healthy", "service_started"}, name
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", [])), name
        # What is no text would be written as YAML understands it: yes as true.
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), name


def test_passwords_are_to_be_filled_in() -> None:
    """No secret stands in a file that is kept with the code."""
    ignored = set((DEPLOY / ".gitignore").read_text().split())
    assert {"/secrets/", "/.env"} <= ignored
    files = [*(DEPLOY / "secrets.example").iterdir(), DEPLOY / ".env.example"]
    given = [pair for path in files for pair in env_file(path).items()]
    given += list(of_kind("Secret")["alertbeam-secrets"]["stringData"].items())
    passwords = {(name, value) for name, value in given if "PASSWORD" in name}
    assert len(passwords) >= 5
    assert {value for _, value in passwords} == {"", "change-me"}
    for service in compose()["services"].values():
        assert not any("PASSWORD" in name for name in service.get("environment", {}))
    assert not any("PASSWORD" in name for name in of_kind("ConfigMap")["alertbeam-settings"]["data"])


def stream_services() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Each start of a stream: its name, words, and variables."""
    for given in ({}, env_file(DEPLOY / ".env.example")):
        for name, service in compose()["services"].items():
            if substituted(service["image"], given).startswith(OURS) and service["command"][0] == "stream":
                variables = env_file(DEPLOY / "secrets.example" / "stream.env")
                variables |= {key: substituted(value, given) for key, value in service["environment"].items()}
                yield name, service["command"], variables
    variables = (
        of_kind("ConfigMap")["alertbeam-settings"]["data"] | of_kind("Secret")["alertbeam-secrets"]["stringData"]
    )
    for name, container in containers():
        if container.get("image", "").startswith(OURS) and container["args"][0] == "stream":
            yield name, container["args"], variables


def test_streams_are_started_with_what_they_understand() -> None:
    starts = list(stream_services())
    assert len(starts) == 6
    for name, words, variables in starts:
        assert set(variables) <= VARIABLES, name
        read = read_stream_environment(variables, "all")
        assert read.notices == (), name
        assert read.prometheus is True
        options, rest = parser("stream").parse_known_args(words)
        environment = chosen(options, variables)
        assert environment.consumer.settings().group == "alertbeam"
        assert environment.producer.settings() is not None
        assert environment.environment.database is not None
        assert is_flink(options.runner) == bool(rest)
        if rest:
            assert flink_options(rest, streaming=True).get_all_options()["environment_type"] == "EXTERNAL"
            assert not FlinkStream(rest, environment.consumer.settings(), Path("unused")).computes_here
        assert options.metrics_port == 8000
        # A name of a topic that stands for no date would be one topic for ever.
        assert "%s" in variables["TOPIC_STRATEGY_FORMAT"]


def test_worker_pool_of_compose_is_understood_and_watched() -> None:
    worker = compose()["services"]["worker"]
    options = parser("worker-pool").parse_args(worker["command"])
    assert f"localhost:{options.port}" == WORKER_POOL
    assert f"127.0.0.1:{options.health_port}/healthz" in worker["healthcheck"]["test"][-1]
    # Prometheus reaches its numbers, and nobody outside what starts workers.
    assert (options.health_host, options.host) == ("0.0.0.0", "127.0.0.1")


def test_streams_find_their_folders() -> None:
    for service in compose()["services"].values():
        if substituted(service["image"], {}).startswith(OURS):
            places = {substituted(volume, {}).split(":")[1] for volume in service["volumes"]}
            assert {"/data", "/catalogs/allwise", "/models"} <= places
            assert service.get("environment", {}).get("MODEL_PATH", "/models/").startswith("/models/")


# Dockerfile


def test_image_is_made_of_all_rooms_and_runs_as_nobody_special() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    rooms = re.search(r"ROOMS = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.S)
    assert rooms
    wanted = {name.split(".")[0] for name in re.findall(r'"([\w.]+)"', rooms[1])}
    taken = set(re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M))
    assert wanted | {"LICENSE", "constraints.txt", "pyproject.toml", "setup.py"} == taken
    assert all((ROOT / name).exists() for name in taken)
    assert "--constraint constraints.txt" in text
    last_stage = text.split("\nFROM ")[-1]
    user = re.search(r"^USER (\w+)$", last_stage, re.M)
    assert user
    assert f"useradd --uid 10001 --gid {user[1]}" in last_stage
    assert re.search(r'^ENTRYPOINT \["alertbeam"\]$', last_stage, re.M)
    assert "/healthz" in last_stage
    assert re.search(r"^EXPOSE 8000$", last_stage, re.M)


def test_image_compiles_its_kernels_as_its_user() -> None:
    last_stage = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")[-1]
    before, _, after = last_stage.partition("\nUSER alertbeam\n")
    (step,) = re.findall(r"^RUN (.*?[^\\])$", after, re.M | re.S)
    commands = re.findall(r"alertbeam ((?:sample|catalog|backfill) [^&]*)", step.replace("\\\n", " "))
    parsed = [parser().parse_args(shlex.split(command)) for command in commands]
    assert [options.command_name for options in parsed] == ["sample", "catalog", "backfill", "backfill"]
    assert {options.mode for options in parsed[2:]} == {str(mode) for mode in Mode}
    # One that writes its kernels where streams and workers look for them, compiled for more than its own processor.
    folder = re.search(r"NUMBA_CACHE_DIR=(\S+)", before)
    assert folder
    assert re.search(rf"install --directory --owner=alertbeam .*{folder[1]}\b", before.replace("\\\n", " "))
    assert re.search(r"NUMBA_CPU_NAME=\$PROCESSOR", before)
    assert folder[1] not in (re.search(r"^VOLUME (.*)$", after, re.M) or [""])[0]


# Shell and systemd


def shell_scripts() -> list[Path]:
    return sorted(DEPLOY.rglob("*.sh"))


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: path.name)
def test_shell_scripts_are_well_formed(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & 0o111
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_script_without_a_folder_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(DEPLOY / "standalone.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "deploy/standalone.sh FOLDER" in done.stderr


def test_systemd_unit_starts_the_stream() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read_string((DEPLOY / "alertbeam-stream.service").read_text().replace("\\\n", " "))
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "alertbeam"
    options = parser("stream").parse_args(words)
    assert options.metrics_port == 8000
    # It writes only where the unit lets it.
    assert options.output.startswith(f"/var/lib/{service['StateDirectory']}/")
    assert service["Environment"].split("=", 1)[1].startswith(f"/var/cache/{service['CacheDirectory']}/")
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"


# Prometheus and Grafana


@pytest.fixture(scope="module")
def monitored() -> Iterator[set[str]]:
    """Names of all samples that a stream serves."""
    told = Monitor(MonitorSettings(port=0, address="127.0.0.1"))
    # A sender without a broker would wait for it at the end.
    told._metrics = SimpleNamespace(sent=1, lost=0, send=lambda *_: None, close=lambda: None)  # type: ignore[assignment]
    try:
        told.counts = lambda: {"matched": 1}
        told.received(1)
        told.lag({("ztf", 0): 1})
        told.committed(Committed(1, np.array([int(time.time() * 1000)]), time.time()))
        with urllib.request.urlopen(f"http://127.0.0.1:{told.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        yield {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    finally:
        told.close()


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics in an expression of PromQL."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    names = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w)\s*(\(?)", text)
    return {name for name, call in names if not call and name not in ("and", "or", "unless", "bool", "offset")}


def test_metrics_are_found_in_expressions() -> None:
    text = 'sum by (le) (rate(a_bucket{x=~"b|c"}[5m])) > 0.2 and on() time() - max(d) > 1e9 unless on () e offset 5m'
    assert metrics_in(text) == {"a_bucket", "d", "e"}


def expressions() -> Iterator[tuple[str, str]]:
    for group in documents(DEPLOY / "prometheus" / "alarms.yml")[0]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@cache
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "dashboards" / "alertbeam.json").read_text())


def test_every_metric_that_is_asked_for_is_served(monitored: set[str]) -> None:
    known = monitored | FLINK_METRICS | OTHER_METRICS
    asked = set()
    for name, expression in expressions():
        found = metrics_in(expression)
        assert found, name
        assert found <= known, name
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), name
        asked |= found
    # What a stream tells of itself is looked at: summaries of APF are for those who have dashboards of it.
    ours = {name for name in monitored if name.startswith("alertbeam_") and not name.endswith(("_created", "_info"))}
    assert {name for name in ours if not name.startswith("alertbeam_latency_seconds")} <= asked | {
        "alertbeam_alerts_received_total"
    }
    assert asked >= FLINK_METRICS


def test_every_counter_that_is_asked_for_is_counted() -> None:
    source = "".join(path.read_text() for path in (ROOT / "transforms").glob("*.py"))
    counted = set(re.findall(r'\bcount\("(\w+)"', source))
    asked = set()
    for _, expression in expressions():
        for names in re.findall(r'name=~?"([^"]+)"', expression):
            asked |= set(names.split("|"))
    assert asked - {"dead_letters:.+"} <= counted
    assert 'count(f"dead_letters:' in source


def test_alarms_say_what_is_wrong_and_what_to_do() -> None:
    headings = set(re.findall(r"^\| `(\w+)` \|", OPERATIONS.read_text(), re.M))
    alarms = [rule for group in documents(DEPLOY / "prometheus" / "alarms.yml")[0]["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in alarms]
    assert len(names) == len(set(names))
    assert headings == set(names)
    for rule in alarms:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "warn", "info")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_prometheus_finds_the_services() -> None:
    told = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]
    for name in told["rule_files"]:
        assert (DEPLOY / "prometheus" / name).is_file()
    services = compose()["services"]
    for job in told["scrape_configs"]:
        for found in job["dns_sd_configs"]:
            assert set(found["names"]) <= set(services)
            # A container without a network of its own has no name of its own.
            assert not any("network_mode" in services[name] for name in found["names"])


def test_dashboard_is_provisioned_and_its_panels_lie_beside_each_other() -> None:
    told = dashboard()
    panels = told["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    source = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")[0]["datasources"][0]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == source["uid"]
    provider = documents(DEPLOY / "grafana" / "provisioning" / "dashboards" / "alertbeam.yaml")[0]["providers"][0]
    mounted = {volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted


# Kubernetes


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in of_kind("Deployment").items():
        yield name, document["spec"]["template"]["spec"]
    for name, document in of_kind("FlinkDeployment").items():
        common, own = document["spec"]["podTemplate"]["spec"], document["spec"]["taskManager"]["podTemplate"]["spec"]
        merged = {key: [*common.get(key, []), *own.get(key, [])] for key in ("containers", "volumes")}
        yield name, {**common, **own, **merged}


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for container in pod["containers"]:
            yield f"{name}/{container['name']}", container


def typed(document: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """A manifest as kubectl, which has Kubernetes' own types in it, reads and writes it without a cluster."""
    words = ["kubectl", *command, "--local", "--filename=-", "--output=json"]
    done = subprocess.run(words, input=json.dumps(document), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lost(told: Any, kept: Any, path: str = "") -> list[str]:
    """What stands in one manifest and not in another: misspelt fields, which the types do not have."""
    if isinstance(told, dict) and isinstance(kept, dict):
        return [each for key in told for each in lost(told[key], kept.get(key), f"{path}.{key}")]
    if isinstance(told, list) and isinstance(kept, list) and len(told) == len(kept):
        return [
            each
            for i, (one, other) in enumerate(zip(told, kept, strict=True))
            for each in lost(one, other, f"{path}[{i}]")
        ]
    return [] if told == kept or told == {} else [path]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_manifests_have_the_fields_of_their_types() -> None:
    variable = ("set", "env", "ADDED=1")
    for document in of_kind("Deployment").values():
        assert lost(document, typed(document, variable)) == []
    for name, pod in pods():
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        assert lost(document, typed(document, variable)) == []
    for document in of_kind("Service").values():
        selector = ",".join(f"{key}={value}" for key, value in document["spec"]["selector"].items())
        assert lost(document, typed(document, ("set", "selector", selector))) == []
    # What kubectl changes is no claim, but what makes claims.
    claims = [
        {"metadata": each["metadata"], "spec": each["spec"]} for each in of_kind("PersistentVolumeClaim").values()
    ]
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template, "volumeClaimTemplates": claims}
    document = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "a"}, "spec": spec}
    assert lost(document, typed(document, variable)) == []
    misspelt = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": template["spec"] | {"hostnam": "b"},
    }
    assert lost(misspelt, typed(misspelt, variable)) == [".spec.hostnam"]


def test_maps_hold_text() -> None:
    for kind, field in (("ConfigMap", "data"), ("Secret", "stringData")):
        for document in of_kind(kind).values():
            assert all(isinstance(value, str) for value in document[field].values())


def test_flink_deployment_has_the_fields_of_its_type() -> None:
    """Those of flink.apache.org/v1beta1 that are used here, by the operator's definition of it."""
    for document in of_kind("FlinkDeployment").values():
        spec = document["spec"]
        fields = {"flinkConfiguration", "flinkVersion", "image", "jobManager", "mode", "podTemplate", "serviceAccount"}
        assert set(spec) <= fields | {"taskManager"}
        assert spec["flinkVersion"] == f"v{FLINK_VERSION.replace('.', '_')}"
        # Only in this mode the task managers are there before a job, as many as the replicas.
        assert spec["mode"] == "standalone"
        for part in ("jobManager", "taskManager"):
            assert set(spec[part]) <= {"podTemplate", "replicas", "resource"}
            assert re.fullmatch(r"\d+(m|g)", spec[part]["resource"]["memory"])
            assert isinstance(spec[part]["resource"]["cpu"], int | float)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("way", ["plain", "flink"])
def test_kustomizations_are_rendered(way: str) -> None:
    folder = DEPLOY / "kubernetes" / way
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    rendered = [document for document in yaml.safe_load_all(done.stdout) if document]
    expected = [
        document
        for path, document in manifests()
        if path.parent.name in ("common", way) and document["kind"] != "Secret"
    ]
    assert {(each["kind"], each["metadata"]["name"]) for each in rendered} == {
        (each["kind"], each["metadata"]["name"]) for each in expected
    }


def test_manifests_are_of_known_kinds_and_named() -> None:
    for path, document in manifests():
        assert KINDS[document["kind"]] == document["apiVersion"], path
        name = document["metadata"].get("name") or document["metadata"]["generateName"]
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,61}", name), path
    assert {document["kind"] for _, document in manifests()} | {"Kustomization"} == set(KINDS)


def test_resources_of_kustomizations_are_there() -> None:
    for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        told = documents(path)[0]
        assert told["apiVersion"] == KINDS["Kustomization"]
        for name in told["resources"]:
            target = path.parent / name
            assert target.is_file() or (target / "kustomization.yaml").is_file(), target


def test_pods_refer_to_what_is_there() -> None:
    claims, configs, secrets = of_kind("PersistentVolumeClaim"), of_kind("ConfigMap"), of_kind("Secret")
    for name, pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        used = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert used == set(volumes), name
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim")
            assert "emptyDir" in volume or (claim and claim["claimName"] in claims), name
        for container in pod["containers"]:
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {})
                asked = asked.get("httpGet") or asked.get("tcpSocket") or {}
                assert asked.get("port") in {*ports, None}, name
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in configs
                else:
                    assert source["secretRef"]["name"] in secrets


def test_services_select_pods_that_are_there() -> None:
    labelled = {
        frozenset(document["spec"]["template"]["metadata"]["labels"].items()): document["spec"]["template"]["spec"]
        for document in of_kind("Deployment").values()
    }
    for name, document in of_kind("Deployment").items():
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
    for name, service in of_kind("Service").items():
        wanted = service["spec"]["selector"]
        pod = next(spec for labels, spec in labelled.items() if wanted.items() <= dict(labels).items())
        ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name


def test_containers_of_ours_run_what_the_image_has() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    exposed = {int(port) for port in re.search(r"^EXPOSE (.+)$", image, re.M)[1].split()}  # type: ignore[index]
    ours = [
        (name, pod, each)
        for name, pod in pods()
        for each in pod["containers"]
        if each.get("image", "").startswith(OURS)
    ]
    assert {container["args"][0] for _, _, container in ours} == {"stream", "worker-pool"}
    for name, pod, container in ours:
        options, rest = parser(container["args"][0]).parse_known_args(container["args"])
        if options.command_name == "worker-pool":
            assert not rest
            probe = container["livenessProbe"]["exec"]["command"]
            assert f"127.0.0.1:{options.health_port}/healthz" in probe[-1]
            assert f"localhost:{options.port}" == WORKER_POOL
            assert [port["containerPort"] for port in container["ports"]] == [options.health_port]
            assert options.health_host == "0.0.0.0"
            assert options.host == "127.0.0.1"
        else:
            assert {port["containerPort"] for port in container.get("ports", [])} <= exposed
        secure = pod.get("securityContext", {}) | container["securityContext"]
        assert secure["runAsUser"] == 10001, name
        assert secure["runAsNonRoot"] is True, name
        assert container["resources"]["requests"], name
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/data", "/catalogs", "/models"} <= places, name
        # Kernels of the image would be hidden by a volume, and left alone where the folder cannot be written to.
        assert not any("/opt/kernels".startswith(place) for place in places), name
        assert not secure.get("readOnlyRootFilesystem"), name
        # What workers need to know comes with the job.
        assert bool(container.get("envFrom")) == (options.command_name == "stream"), name


def test_streams_are_one_process_each() -> None:
    for name in ("alertbeam-stream", "alertbeam-driver"):
        spec = of_kind("Deployment")[name]["spec"]
        assert spec["replicas"] == 1
        assert spec["strategy"] == {"type": "Recreate"}


def test_streams_have_time_to_end() -> None:
    """What was read is finished; on Flink a savepoint is made, and the job cancelled if that fails."""
    seconds = {"stream": 120, "driver": int(_SECONDS_TO_STOP) + 60}
    for name, least in seconds.items():
        told = compose()["services"][name]["stop_grace_period"]
        assert 60 * int(told.removesuffix("m")) >= least
        pod = of_kind("Deployment")[f"alertbeam-{name}"]["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= least


def test_addresses_of_the_job_server_agree() -> None:
    places = []
    for _, words, _ in stream_services():
        given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if "job_endpoint" in given:
            places.append((given["job_endpoint"], given["flink_master"], given["environment_config"]))
    services = {**compose()["services"], **of_kind("Service")}
    for endpoint, _, pool in set(places):
        host, port = endpoint.split(":")
        assert host in services
        assert port == "8099"
        assert pool == WORKER_POOL
    masters = [
        *(word for word in compose()["services"]["jobserver"]["command"] if "master" in word),
        *(word for _, container in containers() for word in container.get("args", []) if "--flink-master" in word),
    ]
    flink = next(iter(of_kind("FlinkDeployment")))
    assert masters == ["--flink-master=jobmanager:8081", f"--flink-master={flink}-rest:8081"]
    # The driver asks the Flink that its job server submits to.
    assert {f"--flink-master={master}" for _, master, _ in places} == set(masters)


def test_settings_of_flink_are_those_of_its_version() -> None:
    places = [
        yaml.safe_load(compose()["x-flink-properties"]["FLINK_PROPERTIES"]),
        *(document["spec"]["flinkConfiguration"] for document in of_kind("FlinkDeployment").values()),
    ]
    for told in places:
        assert set(told) <= FLINK_SETTINGS | OPERATOR_SETTINGS
        assert told["state.backend.type"] == "rocksdb"
        assert told["execution.checkpointing.externalized-checkpoint-retention"] == "RETAIN_ON_CANCELLATION"
    assert re.findall(r"java\.base/([\w.]+)=", places[1]["env.java.opts.all"]) == list(_OPENED)
    # A mapping whose values are not text is refused by the operator.
    assert all(isinstance(value, str) for value in places[1].values())


def test_images_are_the_same_everywhere_and_named_without_a_registry() -> None:
    used = {substituted(service["image"], {}) for service in compose()["services"].values()}
    used |= {container["image"] for _, container in containers() if "image" in container}
    used |= {document["spec"]["image"] for document in of_kind("FlinkDeployment").values()}
    used |= set(re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M))
    for image in used:
        assert re.fullmatch(r"([a-z0-9-]+/)?[a-z0-9_.-]+:[\w.-]+", image), image
    names = [image.split(":")[0] for image in used]
    assert len(names) == len(set(names))
    # The job server and its Flink are those that the tests run.
    beam = re.search(r"<beam.version>(.+)</beam.version>", POM.read_text())
    assert beam
    assert f"apache/beam_flink{FLINK_VERSION}_job_server:{beam[1]}" in used
    assert any(image.startswith(f"flink:{FLINK_VERSION}.") for image in used)
    version = re.search(r'version="(.+)"', (ROOT / "setup.py").read_text())
    assert version
    assert f"{OURS}{version[1]}" in used
