"""What the Helm chart promises, asked of a real Helm.

Nothing here looks at a template's text where it can look at what is rendered from it. Helm comes
from helm/get_helm.py; where it cannot be had the tests are skipped, but never under CI=true.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

from broker.config import parse

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "token-broker"
DEFAULT, FULL = CHART / "ci" / "default-values.yaml", CHART / "ci" / "full-values.yaml"
CI_FILES = sorted((CHART / "ci").glob("*.yaml"))
VERSIONS = ["1.27", "1.34"]  # the oldest that Chart.yaml admits, and one of today's
OPERATOR = (
    "-a",
    "monitoring.coreos.com/v1/ServiceMonitor",
)  # a cluster with the Prometheus operator

Document = dict[str, Any]
Done = subprocess.CompletedProcess[str]
every_ci_file = pytest.mark.parametrize("values_file", CI_FILES, ids=lambda path: path.stem)


def execute(command: list[str], **options: Any) -> Done:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, **{"timeout": 30, **options}
    )


@dataclass(frozen=True)
class Helm:
    binary: Path
    env: Mapping[str, str]

    def run(self, *arguments: str | Path, values: Document | None = None) -> Done:
        """Helm with these arguments, and `values` over all values files."""
        command = [str(argument) for argument in (self.binary, *arguments)]
        if values is not None:
            command += ["-f", "-"]
        return execute(command, env=dict(self.env), input=json.dumps(values or {}))

    def render(
        self, values_file: Path, *options: str, values: Document | None = None, chart: Path = CHART
    ) -> list[Document]:
        release = ("template", "rel", chart, "-n", "broker", "-f", values_file)
        done = self.run(*release, *options, values=values)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    def refusal(self, *options: str, values: Document) -> str:
        """What Helm says to the default ci file with these values over it."""
        done = self.run("template", "rel", CHART, "-f", DEFAULT, *options, values=values)
        assert done.returncode != 0, "rendered, though it should have been refused"
        return done.stderr


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    binary, home = ROOT / ".tools" / "helm", tmp_path_factory.mktemp("helm")
    script = ROOT / "helm" / "get_helm.py"
    fetched = execute([sys.executable, str(script), str(binary)], timeout=330)
    if fetched.returncode == 3 and os.environ.get("CI") != "true":
        pytest.skip(f"THE CHART IS NOT TESTED. {fetched.stderr.strip()}")
    assert fetched.returncode == 0, fetched.stderr
    homes = {f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    return Helm(binary, {**homes, "KUBECONFIG": os.devnull})


def only(documents: list[Document], kind: str) -> Document:
    [document] = [document for document in documents if document["kind"] == kind]
    return document


def broker_pod(documents: list[Document]) -> Document:
    spec: Document = only(documents, "Deployment")["spec"]["template"]["spec"]
    return spec


def pod_specs(documents: list[Document]) -> list[Document]:
    return [broker_pod(documents), only(documents, "Pod")["spec"]]


def broker_yaml(documents: list[Document]) -> Document:
    [(name, text)] = only(documents, "ConfigMap")["data"].items()
    assert name == "broker.yaml"
    config: Document = yaml.safe_load(text)
    return config


def merged(under: Document, over: Document) -> Document:
    shared = [key for key in under.keys() & over.keys() if isinstance(under[key], dict)]
    return {**under, **over, **{key: merged(under[key], over[key]) for key in shared}}


# ---------------------------------------------------------------- the broker's side of the contract


def rendered_config(helm: Helm, values_file: Path) -> Document:
    """The broker.yaml that the pods get with this values file, parsed."""
    return broker_yaml(helm.render(values_file))


@every_ci_file
def test_the_broker_takes_what_is_rendered(helm: Helm, values_file: Path) -> None:
    """The broker.yaml that the pods get is a configuration that the broker accepts."""
    rendered = yaml.safe_dump(rendered_config(helm, values_file))
    assert parse(rendered.encode(), values_file.parent).profiles


# --------------------------------------------------------------------------------- what is rendered


@every_ci_file
def test_lint(helm: Helm, values_file: Path) -> None:
    """`helm lint --strict` has nothing against the chart with any ci values file."""
    done = helm.run("lint", "--strict", CHART, "-f", values_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@every_ci_file
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_schemas(helm: Helm, values_file: Path, version: str) -> None:
    """What is rendered for a Kubernetes version has no unknown field in it, and no wrong type."""
    documents = helm.render(values_file, "--kube-version", f"{version}.0")
    builtin = [document for document in documents if document["kind"] != "ServiceMonitor"]
    assert len(builtin) == 5
    for document in builtin:
        kubernetes_validate.validate(document, version, strict=True)


def test_old_clusters(helm: Helm) -> None:
    """A cluster older than the oldest supported one is refused."""
    assert "kubeVersion: >=1.27.0-0" in helm.refusal("--kube-version", "1.26.9", values={})


@every_ci_file
def test_kinds(helm: Helm, values_file: Path) -> None:
    """The chart renders these kinds, once each, in the release's namespace, and never a Secret."""
    documents = helm.render(values_file, *OPERATOR)
    monitor = ["ServiceMonitor"] if values_file == FULL else []
    kinds = sorted(document["kind"] for document in documents)
    assert kinds == sorted(
        ["ConfigMap", "Deployment", "Pod", "Service", "ServiceAccount", *monitor]
    )
    assert {document["metadata"]["namespace"] for document in documents} == {"broker"}


@every_ci_file
def test_restricted_pod_security(helm: Helm, values_file: Path) -> None:
    """Every pod, the test pod too, is within the restricted Pod Security Standard, and tighter."""
    for spec in pod_specs(helm.render(values_file)):
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert (
            not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"}
            & spec.keys()
        )
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}}
        assert kinds <= {"configMap", "secret", "emptyDir"}
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", []))


@every_ci_file
def test_no_kubernetes_api(helm: Helm, values_file: Path) -> None:
    """No pod gets an API token or the environment variables of its neighbours."""
    documents = helm.render(values_file)
    account = only(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for spec in pod_specs(documents):
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)


def test_rollout(helm: Helm) -> None:
    """A rollout adds a pod before it takes one away, and the pod serves 5 s before it counts."""
    spec = only(helm.render(DEFAULT), "Deployment")["spec"]
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert (spec["replicas"], spec["minReadySeconds"], spec["revisionHistoryLimit"]) == (1, 5, 5)


def test_container(helm: Helm) -> None:
    """The container runs `serve` on the mounted file, is probed on ops, and has no CPU limit."""
    [container] = broker_pod(helm.render(DEFAULT))["containers"]
    probes = {key: value["httpGet"] for key, value in container.items() if key.endswith("Probe")}
    assert container["command"] == ["token-broker"]
    assert container["args"] == ["serve", "-c", "/etc/token-broker/broker.yaml"]
    assert container["env"] == [{"name": "MALLOC_ARENA_MAX", "value": "2"}]
    assert probes == {
        "startupProbe": {"path": "/livez", "port": "ops"},
        "livenessProbe": {"path": "/livez", "port": "ops"},
        "readinessProbe": {"path": "/readyz", "port": "ops"},
    }
    assert container["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"memory": "256Mi"},
    }


@every_ci_file
def test_spread(helm: Helm, values_file: Path) -> None:
    """Every spread constraint counts the broker's own pods; by default it is only a wish."""
    documents = helm.render(values_file)
    selector = only(documents, "Deployment")["spec"]["selector"]
    constraints = broker_pod(documents)["topologySpreadConstraints"]
    assert [constraint["labelSelector"] for constraint in constraints] == [selector] * len(
        constraints
    )
    if values_file == DEFAULT:
        assert {constraint["whenUnsatisfiable"] for constraint in constraints} == {"ScheduleAnyway"}


def test_mounts(helm: Helm) -> None:
    """Configuration and secrets are whole directories, read-only; /tmp is bounded memory."""
    spec = broker_pod(helm.render(DEFAULT))
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": "config", "mountPath": "/etc/token-broker", "readOnly": True},
        {"name": "secrets", "mountPath": "/run/secrets/token-broker", "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    assert spec["volumes"] == [
        {"name": "config", "configMap": {"name": "rel-token-broker"}},
        {"name": "secrets", "secret": {"secretName": "token-broker", "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]


def test_no_secret(helm: Helm) -> None:
    """Without an existing Secret there is no secret volume, and secrets may come otherwise."""
    extra = {
        "secrets": {"existingSecret": ""},
        "extraVolumes": [{"name": "vault", "csi": {"driver": "vault"}}],
        "extraVolumeMounts": [{"name": "vault", "mountPath": "/run/secrets/token-broker"}],
    }
    spec = broker_pod(helm.render(DEFAULT, values=extra))
    assert [volume["name"] for volume in spec["volumes"]] == ["config", "tmp", "vault"]
    assert [mount["name"] for mount in spec["containers"][0]["volumeMounts"]] == [
        "config",
        "tmp",
        "vault",
    ]


@every_ci_file
def test_ports(helm: Helm, values_file: Path) -> None:
    """The Service's ports lead, by name, to the ports that the rendered broker.yaml listens on."""
    documents = helm.render(values_file)
    server, service = broker_yaml(documents)["server"], only(documents, "Service")["spec"]
    [container] = broker_pod(documents)["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "public": server["public"]["port"],
        "ops": server["ops"]["port"],
    }
    public, ops = {DEFAULT: (80, 9090), FULL: (8080, 9100)}[values_file]
    assert service["type"] == "ClusterIP"
    assert service["ports"] == [
        {"name": "http", "port": public, "targetPort": "public", "protocol": "TCP"},
        {"name": "ops", "port": ops, "targetPort": "ops", "protocol": "TCP"},
    ]


@every_ci_file
def test_selectors(helm: Helm, values_file: Path) -> None:
    """The Service selects the broker's pods, and not the test pod, which has no port to serve."""
    documents = helm.render(values_file)
    deployment = only(documents, "Deployment")["spec"]
    selector = only(documents, "Service")["spec"]["selector"]
    assert deployment["selector"]["matchLabels"] == selector
    assert selector.items() <= deployment["template"]["metadata"]["labels"].items()
    assert not selector.items() <= only(documents, "Pod")["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "token-broker:0.1.0"),
        ({"registry": "reg.example:5000", "tag": "edge"}, "reg.example:5000/token-broker:edge"),
        ({"digest": "sha256:" + "a" * 64}, "token-broker:0.1.0@sha256:" + "a" * 64),
    ],
    ids=["default", "registry", "digest"],
)
def test_image(helm: Helm, image: Document, reference: str) -> None:
    """Both pods run registry/repository:tag@digest, of which only what is given appears."""
    specs = pod_specs(helm.render(DEFAULT, values={"image": image}))
    assert [spec["containers"][0]["image"] for spec in specs] == [reference] * 2


# ----------------------------------------------------------------------- configuration and shutdown


@every_ci_file
def test_config(helm: Helm, values_file: Path) -> None:
    """broker.yaml is what the user wrote under `config`, over the chart's `server`."""
    values = yaml.safe_load(values_file.read_text())
    times = values.get("shutdown", {"drainSeconds": 10, "gracefulTimeoutSeconds": 20})
    server = {
        "public": {"host": "0.0.0.0", "port": 8080},
        "ops": {"host": "0.0.0.0", "port": 9090},
        "drain_delay": f"{times['drainSeconds']}s",
        "shutdown_grace": f"{times['gracefulTimeoutSeconds']}s",
        "keep_alive": "75s",
    }
    assert rendered_config(helm, values_file) == merged({"server": server}, values["config"])


def test_config_verbatim(helm: Helm) -> None:
    """Nothing in `config` is dropped, retyped or taken for a template on the way."""
    odd: Document = {
        "server": {"list": [], "nought": 0, "flag": False, "text": "", "public": {"port": 8081}},
        "numbers": {"big": 100000000, "share": 0.5},
        "texts": {"octal": "0440", "yes": "yes", "date": "2026-11-20", "lines": "a\n b\n"},
        "holes": ["${claims.merchant_id}", "{{ .Values.image }}", "x " * 100, None, {}],
    }
    plain = rendered_config(helm, DEFAULT)
    assert broker_yaml(helm.render(DEFAULT, values={"config": odd})) == merged(plain, odd)


@pytest.mark.parametrize(("drain", "graceful"), [(0, 0), (10, 20), (7, 90), (3600, 3600)])
def test_grace_period(helm: Helm, drain: int, graceful: int) -> None:
    """The pod's grace period is the broker's drain, then its graceful timeout, then 5 s."""
    shutdown = {"drainSeconds": drain, "gracefulTimeoutSeconds": graceful}
    documents = helm.render(DEFAULT, values={"shutdown": shutdown})
    server = broker_yaml(documents)["server"]
    assert (server["drain_delay"], server["shutdown_grace"]) == (f"{drain}s", f"{graceful}s")
    assert broker_pod(documents)["terminationGracePeriodSeconds"] == drain + graceful + 5


def test_checksum(helm: Helm) -> None:
    """A changed configuration restarts the pods; another Secret or replica count does not."""

    def annotations(values: Document) -> Document:
        template = only(helm.render(DEFAULT, values=values), "Deployment")["spec"]["template"]
        found: Document = template["metadata"]["annotations"]
        return found

    before = annotations({})
    assert before.keys() == {"checksum/config"}
    assert annotations({"replicaCount": 5, "secrets": {"existingSecret": "other"}}) == before
    assert (
        annotations({"config": {"profiles": {"transactions": {"min_remaining": "6m"}}}}) != before
    )
    assert annotations({"shutdown": {"drainSeconds": 11}}) != before


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"config": {"profiles": None}}, "config has no profiles: put the content of your"),
        ({"config": {"server": {"drain_delay": "5s"}}}, "set shutdown.drainSeconds"),
        (
            {"config": {"server": {"shutdown_grace": "5s"}}},
            "and shutdown.gracefulTimeoutSeconds instead",
        ),
        (
            {"config": {"server": {"public": {"host": "127.0.0.1"}}}},
            "config.server.public.host is 127.0.0.1",
        ),
        (
            {"config": {"server": {"ops": {"host": "localhost"}}}},
            "config.server.ops.host is localhost",
        ),
        ({"config": {"server": {"ops": {"host": "::1"}}}}, "leave it out, the chart sets 0.0.0.0"),
        ({"config": {"server": {"ops": {"port": 8080}}}}, "are both 8080: give the two listeners"),
        ({"service": {"port": 9090}}, "are both 9090: give the Service's two ports different"),
        ({"secrets": {"existingSecret": ""}}, "name it in secrets.existingSecret"),
        (
            {"metrics": {"serviceMonitor": {"enabled": True, "renderMode": "failIfMissing"}}},
            "install the Prometheus operator first",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_guards(helm: Helm, values: Document, sentence: str) -> None:
    """Values that render but cannot work are refused with a sentence that says what to do."""
    assert sentence in helm.refusal(values=values)


@pytest.mark.parametrize(
    "values", [{}, {"config": {}}, {"config": {"profiles": {}}}], ids=json.dumps
)
def test_empty_config(helm: Helm, values: Document) -> None:
    """Without a profile, as in the chart's own values, rendering is refused with what to do."""
    done = helm.run("template", "rel", CHART, values=values)
    assert done.returncode != 0
    assert "config has no profiles: put the content of your broker.yaml under `config`" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"replicaCounts": 3}, "'replicaCounts' not allowed"),
        ({"image": {"hash": "x"}}, "'hash' not allowed"),
        ({"metrics": {"serviceMonitor": {"intervall": "1m"}}}, "'intervall' not allowed"),
        ({"secrets": {"data": {"nmi": "inline"}}}, "'data' not allowed"),
        ({"image": {"digest": "sha256:abc"}}, "'/image/digest'"),
        ({"image": {"digest": "A" * 64}}, "'/image/digest'"),
        ({"image": {"tag": "a b"}}, "'/image/tag'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "'/image/pullPolicy'"),
        ({"shutdown": {"drainSeconds": "10s"}}, "'/shutdown/drainSeconds'"),
        ({"shutdown": {"drainSeconds": None}}, "'/shutdown'"),
        ({"config": {"server": {"public": {"port": 80}}}}, "'/config/server/public/port'"),
        ({"config": {"profiles": {"transactions": None}}}, "'/config/profiles/transactions'"),
        ({"secrets": {"mountPath": "run/secrets"}}, "'/secrets/mountPath'"),
        ({"secrets": {"mountPath": "/etc/token-broker"}}, "'/secrets/mountPath'"),
        ({"metrics": {"serviceMonitor": {"renderMode": "maybe"}}}, "/serviceMonitor/renderMode'"),
        ({"resources": {"limit": {}}}, "'limit' not allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema(helm: Helm, values: Document, pointer: str) -> None:
    """A key that the chart does not know, or a value of the wrong kind, is refused and named."""
    refusal = helm.refusal(values=values)
    assert "values don't meet the specifications of the schema" in refusal
    assert pointer in refusal


# --------------------------------------------------------------------------------------- monitoring


def test_service_monitor(helm: Helm) -> None:
    """The ServiceMonitor has exactly these keys, and finds the Service by labels it has."""
    documents = helm.render(FULL)
    monitor, service = only(documents, "ServiceMonitor"), only(documents, "Service")
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = {"app.kubernetes.io/name": "broker", "app.kubernetes.io/instance": "rel"}
    assert monitor["spec"] == {
        "jobLabel": "app.kubernetes.io/name",
        "selector": {"matchLabels": selector},
        "endpoints": [{"port": "ops", "path": "/metrics", "interval": "15s"}],
    }
    assert selector.items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("mode", "options", "rendered"),
    [
        ("skipIfMissing", (), 0),
        ("skipIfMissing", OPERATOR, 1),
        ("failIfMissing", OPERATOR, 1),
        ("alwaysRender", (), 1),
    ],
)
def test_render_mode(helm: Helm, mode: str, options: tuple[str, ...], rendered: int) -> None:
    """Where the cluster has no ServiceMonitors, renderMode decides; else one is rendered."""
    values = {"metrics": {"serviceMonitor": {"enabled": True, "renderMode": mode}}}
    kinds = [document["kind"] for document in helm.render(DEFAULT, *options, values=values)]
    assert kinds.count("ServiceMonitor") == rendered


def test_notes(helm: Helm, tmp_path: Path) -> None:
    """The notes name the profiles, and warn of a skipped monitor, a missing Secret, and replicas
    that share nothing."""
    chart = tmp_path / "token-broker"
    shutil.copytree(CHART, chart)
    templates = chart / "templates"
    # Helm shows notes on a real install only, so that here they become part of a document.
    notes = '{{ define "notes" }}' + (templates / "NOTES.txt").read_text() + "{{ end }}"
    (templates / "_notes.tpl").write_text(notes)
    (templates / "notes.yaml").write_text('{kind: Notes, text: {{ include "notes" . | toJson }}}')

    def text(values_file: Path, *options: str, values: Document | None = None) -> str:
        documents = helm.render(values_file, *options, values=values, chart=chart)
        return str(only(documents, "Notes")["text"])

    assert "Profiles: rehearsals, transactions" in text(FULL)
    assert "WARNING" not in text(FULL) + text(DEFAULT)
    enabled = {"metrics": {"serviceMonitor": {"enabled": True}}}
    assert "WARNING: the cluster does not know ServiceMonitors" in text(DEFAULT, values=enabled)
    assert "WARNING" not in text(DEFAULT, *OPERATOR, values=enabled)
    assert "WARNING: 2 replicas without config.state" in text(DEFAULT, values={"replicaCount": 2})
    elsewhere = [{"name": "x", "mountPath": "/x"}]
    keyless = {"secrets": {"existingSecret": ""}, "extraVolumeMounts": elsewhere}
    assert "WARNING: secrets.existingSecret is empty" in text(DEFAULT, values=keyless)


# ------------------------------------------------------------------------ the package, the test pod


def test_package(helm: Helm, tmp_path: Path) -> None:
    """The packaged chart has the test pod and the schema in it, and not the ci values."""
    done = helm.run("package", CHART, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "token-broker-0.1.0.tgz") as package:
        names = set(package.getnames())
    assert {"token-broker/templates/tests/smoke.yaml", "token-broker/values.schema.json"} <= names
    assert not [name for name in names if name.startswith("token-broker/ci/")]


@contextmanager
def answering(*statuses: int) -> Iterator[str]:
    """The URL of a server that answers /readyz with these statuses in turn, the last for ever."""
    left = list(statuses)

    class Readyz(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Readyz) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/readyz"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("statuses", "patience", "succeeds"),
    [((200,), "0", True), ((503,), "0", False), ((503, 200), "10", True)],
    ids=["ready", "not ready", "ready later"],
)
def test_smoke(helm: Helm, statuses: tuple[int, ...], patience: str, succeeds: bool) -> None:
    """The test pod succeeds when /readyz of the ops port does, at once or within its patience."""
    [container] = only(helm.render(DEFAULT), "Pod")["spec"]["containers"]
    assert container["args"] == ["http://rel-token-broker:9090/readyz", "60"]
    python, *rest = container["command"]
    assert python == "python"
    with answering(*statuses) as url:
        done = execute([sys.executable, *rest, url, patience])
    assert (done.returncode == 0) is succeeds, done.stderr
    assert url in (done.stdout if succeeds else done.stderr)


def test_smoke_is_a_hook(helm: Helm) -> None:
    """The test pod belongs to `helm test` and is no part of the release itself."""
    pod = only(helm.render(DEFAULT), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"


# ------------------------------------------------------------------------------------- values drift


def leaves(values: Document, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        found |= leaves(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def test_values_are_used() -> None:
    """Every value in values.yaml is used by a template, and templates use no other value."""
    declared = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    templates = [path for path in (CHART / "templates").rglob("*") if path.is_file()]
    source = "\n".join(path.read_text() for path in templates)
    code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", code))
    whole = tuple(name + "." for name in re.findall(r"toYaml \.Values\.([A-Za-z.]+)", code))
    free = tuple(name + "." for name, value in declared.items() if value == {})

    unused = [leaf for leaf in declared if leaf not in used and not leaf.startswith(whole)]
    known = [name for name in used if name in declared or name + "." in whole]
    undeclared = [name for name in used.difference(known) if not name.startswith(free)]
    assert (unused, undeclared) == ([], [])


def test_values_are_in_the_schema() -> None:
    """The schema is closed, and has the very keys of values.yaml, all of them required."""

    def compare(schema: Document, values: Document, path: str) -> None:
        if "properties" in schema and values:
            assert schema["additionalProperties"] is False, path
            # Helm gives `global` to every subchart, so that the schema has to let it in.
            assert schema["properties"].keys() - {"global"} == values.keys(), path
            assert path == ".resources" or set(schema["required"]) == values.keys(), path
            for key, value in values.items():
                if isinstance(value, dict):
                    compare(schema["properties"][key], value, f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")


def test_values_are_explained() -> None:
    """Every value in values.yaml has a comment above it."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    values = [(above, line) for above, line in pairwise(lines) if re.match(r" *\w+: \S", line)]
    assert [line for above, line in values if not above.lstrip().startswith("#")] == []


def test_full_values_are_full() -> None:
    """ci/full-values.yaml sets every value there is."""
    values = yaml.safe_load(FULL.read_text())
    for name in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        value: Any = values
        for key in name.split("."):
            assert key in value, name
            value = value[key]
