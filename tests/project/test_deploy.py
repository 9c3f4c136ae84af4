"""What operators are given is valid, and says only what the command line and the service know."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from fastapi.testclient import TestClient
from serving import KEY, READ_ONLY, made_album, serving
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from qsplit.album import Album
from qsplit.cli.main import cli
from qsplit.config import Settings
from qsplit.errors import UsageError
from qsplit.server.app import create_app
from qsplit.server.config import ServeOptions
from qsplit.server.run import DRAIN_S

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
MANIFESTS: list[dict[str, Any]] = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
DEPLOYMENTS = [one for one in MANIFESTS if one["kind"] == "Deployment"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs" / "operating.md").read_text()
KUBERNETES = "1.37"

deployments = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["metadata"]["name"])


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """The manifests of a kind, by name."""
    return {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == kind}


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return dict(deployment["spec"]["template"]["spec"])


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(deployment)["containers"]
    return dict(only)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What a command makes of its arguments; raises `click.UsageError` for what it does not know."""
    name, *rest = arguments
    return cli.commands[name].make_context(name, rest).params


def instruction(name: str) -> Any:
    """The JSON of an instruction of the Dockerfile."""
    found = re.search(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found, name
    return json.loads(found[1])


def routes() -> set[str]:
    return set(create_app(Album("memory://")).openapi()["paths"])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    album = made_album(tmp_path_factory.mktemp("deploy"))
    with serving(album, keys=(KEY,), read_only_keys=(READ_ONLY,), hosts=("qsplit-vision",)) as client:
        yield client


def validate(manifest: dict[str, Any]) -> None:
    try:
        schemas = importlib.import_module("kubernetes_validate")
    except ImportError:
        pytest.fail(
            "The schemas of Kubernetes are absent: pip install --constraint constraints.txt kubernetes-validate"
        )
    schemas.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    validate(manifest)
    assert KUBERNETES in PAGE


def test_a_field_that_kubernetes_does_not_know_is_refused() -> None:
    broken = {**DEPLOYMENTS[0], "spec": {**DEPLOYMENTS[0]["spec"], "replica": 1}}
    with pytest.raises(Exception, match="replica"):
        validate(broken)


@deployments
def test_a_deployment_starts_its_half_as_the_command_line_knows(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    asked = parsed(container(deployment)["args"])
    assert asked["role"] == labels["app.kubernetes.io/component"]
    assert asked["host"] == "0.0.0.0"
    with pytest.raises(UsageError, match="no key"):
        ServeOptions(host=asked["host"])
    assert container(deployment)["ports"] == [{"name": "http", "containerPort": asked["port"]}]
    assert pod(deployment)["terminationGracePeriodSeconds"] > DRAIN_S
    mounts = [Path(one["mountPath"]) for one in container(deployment)["volumeMounts"]]
    assert not asked["uploads"] or mounts[-1] in Path(asked["uploads"]).parents


@deployments
def test_a_deployment_sets_what_there_is_to_set(deployment: dict[str, Any]) -> None:
    (source,) = container(deployment)["envFrom"]
    secret = of_kind("Secret")[source["secretRef"]["name"]]["stringData"]
    own = {one["name"]: one["value"] for one in container(deployment)["env"]}
    settings = Settings.from_env(secret | own)
    assert settings.keys
    assert settings.store.startswith("s3://")
    assert settings.model
    assert any(settings.cache.startswith(one["mountPath"]) for one in container(deployment)["volumeMounts"])


@deployments
def test_kubernetes_sets_nothing_that_is_refused(deployment: dict[str, Any]) -> None:
    service = of_kind("Service")[deployment["metadata"]["name"]]["metadata"]["name"]
    linked = {f"{service.upper().replace('-', '_')}_SERVICE_HOST": "10.0.0.1"}
    with pytest.raises(UsageError, match="no such setting"):
        Settings.from_env(linked)
    assert pod(deployment)["enableServiceLinks"] is False


@deployments
def test_probes_ask_what_is_open(deployment: dict[str, Any], client: TestClient) -> None:
    paths = {
        kind: container(deployment)[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    for path in paths.values():
        assert client.get(path, headers={"host": "10.1.2.3:8080"}).status_code == 200  # as a kubelet asks


@deployments
def test_a_pod_may_do_as_little_as_it_needs(deployment: dict[str, Any]) -> None:
    assert pod(deployment)["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod(deployment)['securityContext']['runAsUser']}:" in DOCKERFILE
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(deployment)["resources"].keys() == {"requests", "limits"}


@deployments
def test_what_belongs_to_a_deployment_selects_its_pods(deployment: dict[str, Any]) -> None:
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    service, budget = of_kind("Service")[name], of_kind("PodDisruptionBudget")[name]
    assert service["spec"]["selector"] == labels == budget["spec"]["selector"]["matchLabels"]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    assert parsed(container(deployment)["args"])["hosts"] == (name,)  # or it refuses who calls it so
    (policy,) = of_kind("NetworkPolicy").values()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (port,) = policy["spec"]["ingress"][0]["ports"]
    assert port["port"] == container(deployment)["ports"][0]["containerPort"]
    claims = {
        one["persistentVolumeClaim"]["claimName"]
        for one in pod(deployment)["volumes"]
        if len(one) > 1 and "persistentVolumeClaim" in one
    }
    assert claims <= of_kind("PersistentVolumeClaim").keys()


def test_the_image_starts_the_service_at_the_port_that_it_exposes() -> None:
    assert instruction("ENTRYPOINT") == ["qsplit"]
    asked = parsed(instruction("CMD"))
    assert f"EXPOSE {asked['port']}\n" in DOCKERFILE
    check = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", DOCKERFILE)
    assert check
    assert (int(check[1]), check[2]) == (asked["port"], "/healthz")
    assert check[2] in routes()


def test_the_image_is_given_what_it_copies() -> None:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert copied
    for name in copied:
        assert f"!{name}" in kept
        assert (ROOT / name).exists()


def test_the_page_names_commands_and_options_that_there_are() -> None:
    commands = re.findall(r"^\s*\$ qsplit (.+)$", PAGE, re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        parsed(shlex.split(command))
    with pytest.raises(click.UsageError):
        parsed(["refresh", "--drop-olds"])


def test_the_page_names_every_metric_and_no_other(client: TestClient) -> None:
    assert client.get("/metrics").status_code == 401
    told = client.get("/metrics", headers={"authorization": f"Bearer {READ_ONLY}"}).text
    exported = set(re.findall(r"^# TYPE (qsplit_\w+) ", told, re.MULTILINE))
    exported = {name for name in exported if not name.endswith("_created")}
    assert set(re.findall(r"^\| `(qsplit_\w+)`", PAGE, re.MULTILINE)) == exported


def test_tokens_are_as_the_processor_counts_them() -> None:
    sizing = importlib.import_module("sizing")
    for model in sizing.MODELS.values():
        for width, height in (sizing.PICTURE, (640, 480), (1920, 1080)):
            high, wide = smart_resize(height, width, factor=model.unit, min_pixels=1, max_pixels=10**8)
            assert model.tokens((width, height)) == high * wide // model.unit**2


def test_sizes_are_those_of_the_payloads() -> None:
    rows, codecs, sizing = (importlib.import_module(name) for name in ("rows", "qsplit.features.codecs", "sizing"))
    for levels in (0, 3):
        model = sizing.Model(64, levels=levels)
        arrays = [rows.random_bits(i, (model.tokens(), 64), "bfloat16") for i in range(1 + levels)]
        for codec in ("raw", "int8"):
            assert len(memoryview(codecs.encode(codec, arrays, "bfloat16"))) == model.nbytes(codec)


def test_the_tables_of_the_page_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizing = importlib.import_module("sizing")
    assert sizing.filled(PAGE) == PAGE
    page = tmp_path / "operating.md"
    page.write_text(PAGE.replace("| Qwen2-VL-2B | 999", "| Qwen2-VL-2B | 998"))
    monkeypatch.setattr(sizing, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["sizing.py", "--check"])
    assert sizing.main() == 1
    monkeypatch.setattr("sys.argv", ["sizing.py"])
    assert sizing.main() == 0
    assert page.read_text() == PAGE
    with pytest.raises(ValueError, match="no <!-- sizes"):
        sizing.filled("nothing")
