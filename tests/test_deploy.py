"""What deploy/ holds agrees with itself and with the program: all that can be checked without running it."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from messaging.monitor import Committed, Monitor
from messaging.settings import MonitorSettings
from pipelines.cli import parser
from pipelines.flink_options import WORKER_POOL, flink_options, is_flink
from pipelines.stream_command import chosen
from pipelines.stream_environment import VARIABLES, read_stream_environment

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
    "Job": "batch/v1",
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
        expected = "no" if name in ("submission", "flink-folders") else "unless-stopped"
        assert service["restart"] == expected, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_variables_of_compose_are_explained() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)", text))
    optional = {"BEAM_VERSION"}
    assert names - optional == set(env_file(DEPLOY / ".env.example"))


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
        assert options.metrics_port == 8000
        # A name of a topic that stands for no date would be one topic for ever.
        assert "%s" in variables["TOPIC_STRATEGY_FORMAT"]


def test_worker_pool_of_compose_is_understood_and_watched() -> None:
    worker = compose()["services"]["worker"]
    options = parser("worker-pool").parse_args(worker["command"])
    assert f"localhost:{options.port}" == WORKER_POOL
    assert f"127.0.0.1:{options.health_port}/healthz" in worker["healthcheck"]["test"][-1]


def test_streams_find_their_folders() -> None:
    for service in compose()["services"].values():
        if substituted(service["image"], {}).startswith(OURS):
            places = {substituted(volume, {}).split(":")[1] for volume in service["volumes"]}
            assert {"/data", "/catalogs/allwise", str(Path(service["environment"]["MODEL_PATH"]).parent)} <= places


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


# Shell and systemd


def shell_scripts() -> list[Path]:
    return sorted(DEPLOY.rglob("*.sh"))


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: path.name)
def test_shell_scripts_are_well_formed(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & 0o111
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_python_inside_of_the_shell_script_finds_its_names() -> None:
    text = (DEPLOY / "standalone.sh").read_text()
    program = re.search(r"<<'PYTHON'.*?\n(.*?)\nPYTHON\n", text, re.S)
    assert program
    compile(program[1], "standalone.sh", "exec")
    imports = [line for line in program[1].splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join(imports), {})
    words = re.search(r"pipelines\.cli (worker-pool .*?) &", text)
    assert words
    parser().parse_args(shlex.split(re.sub(r"\$\{\w+:-(\d+)\}", r"\1", words[1])))
    told = re.search(r"--runner=FlinkRunner .*--parallelism=\{", text, re.S)
    assert told


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
    for kind in ("Deployment", "Job"):
        for name, document in of_kind(kind).items():
            yield name, document["spec"]["template"]["spec"]
    for name, document in of_kind("FlinkDeployment").items():
        common, own = document["spec"]["podTemplate"]["spec"], document["spec"]["taskManager"]["podTemplate"]["spec"]
        merged = {key: [*common.get(key, []), *own.get(key, [])] for key in ("containers", "volumes")}
        yield name, {**common, **own, **merged}


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for container in pod["containers"]:
            yield f"{name}/{container['name']}", container


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
    flink = next(iter(of_kind("FlinkDeployment")))
    for name, service in of_kind("Service").items():
        wanted = service["spec"]["selector"]
        if "component" in wanted:
            # The operator's labels.
            assert wanted == {"app": flink, "component": "taskmanager"}
            ports = {port["name"] for _, pod in pods() for each in pod["containers"] for port in each.get("ports", [])}
        else:
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
        assert {port["containerPort"] for port in container.get("ports", [])} <= exposed
        secure = pod.get("securityContext", {}) | container["securityContext"]
        assert secure["runAsUser"] == 10001, name
        assert secure["runAsNonRoot"] is True, name
        assert container["resources"]["requests"], name
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/data", "/catalogs", "/models", "/home/alertbeam/.cache"} <= places, name


def test_plain_stream_is_one_process() -> None:
    spec = of_kind("Deployment")["alertbeam-stream"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_a_submission_is_not_repeated_by_itself() -> None:
    spec = of_kind("Job")["alertbeam-submission-"]["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    listed = [
        name for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml") for name in documents(path)[0]["resources"]
    ]
    assert "submission.yaml" not in listed


def test_addresses_of_the_job_server_agree() -> None:
    places = []
    for _, words, _ in stream_services():
        given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if "job_endpoint" in given:
            places.append((given["job_endpoint"], given["environment_config"]))
    services = {**compose()["services"], **of_kind("Service")}
    for endpoint, pool in set(places):
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


def test_settings_of_flink_are_those_of_its_version() -> None:
    places = [
        yaml.safe_load(compose()["x-flink-properties"]["FLINK_PROPERTIES"]),
        *(document["spec"]["flinkConfiguration"] for document in of_kind("FlinkDeployment").values()),
    ]
    for told in places:
        assert set(told) <= FLINK_SETTINGS | OPERATOR_SETTINGS
        assert told["state.backend.type"] == "rocksdb"
        assert told["execution.checkpointing.externalized-checkpoint-retention"] == "RETAIN_ON_CANCELLATION"
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
    # The job server is of the version of the SDK.
    beam = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert beam
    assert any(image.endswith(f"job_server:{beam[1]}") for image in used)
    version = re.search(r'version="(.+)"', (ROOT / "setup.py").read_text())
    assert version
    assert f"{OURS}{version[1]}" in used
