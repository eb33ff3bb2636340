"""The rendered manifests keep the rules that a schema cannot state."""

import itertools
import re
from typing import Any

import pytest

from tools import manifests, settings

KINDS = ("Deployment", "StatefulSet", "Job")
OUR_VARIABLES = re.compile(r"^BOURSE_")

pytestmark = pytest.mark.skipif(
    manifests.kustomize() is None, reason="neither kubectl nor kustomize is on the PATH"
)


@pytest.fixture(params=manifests.overlays())
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return manifests.documents(request.param)


def workloads(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] in KINDS]


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(itertools.chain(*(pod(one)["containers"] for one in workloads(documents))))


def named(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def config(documents: list[dict[str, Any]]) -> dict[str, str]:
    """The one ConfigMap, whose name carries a digest of its content."""
    (found,) = named(documents, "ConfigMap").values()
    data: dict[str, str] = found["data"]
    return data


def test_an_overlay_renders_every_workload_and_what_belongs_to_it(
    documents: list[dict[str, Any]],
) -> None:
    running = {*named(documents, "Deployment"), *named(documents, "StatefulSet")}
    assert running == {
        "edge", "routing", "providers-registry", "providers-worker", "billing", "ranking",
    }  # fmt: skip
    for kind in ("Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"):
        assert running <= set(named(documents, kind)), kind
    assert len(named(documents, "Job")) == 4


def test_the_namespace_enforces_restricted_pods(documents: list[dict[str, Any]]) -> None:
    labels = named(documents, "Namespace")["bourse"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_pod_and_container_is_restricted(documents: list[dict[str, Any]]) -> None:
    for workload in workloads(documents):
        context = pod(workload)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] >= 10_000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod(workload)["automountServiceAccountToken"] is False
    for container in containers(documents):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_memory_is_reserved_whole_and_cpu_is_not_throttled(documents: list[dict[str, Any]]) -> None:
    for container in containers(documents):
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert "cpu" not in resources["limits"]


def test_a_pod_may_drain_its_longest_stream(documents: list[dict[str, Any]]) -> None:
    longest_s = float(config(documents)["BOURSE_DRAIN_TIMEOUT_S"])
    for workload in workloads(documents):
        if workload["kind"] == "Job":
            continue
        (container,) = pod(workload)["containers"]
        stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod(workload)["terminationGracePeriodSeconds"] >= stop_s + longest_s + 20


def test_every_service_has_the_three_probes_on_a_port_it_opens(
    documents: list[dict[str, Any]],
) -> None:
    for workload in workloads(documents):
        if workload["kind"] == "Job":
            continue
        (container,) = pod(workload)["containers"]
        opened = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            how = container[probe].get("grpc") or container[probe]["httpGet"]
            assert how["port"] in {*opened, *opened.values()}


def test_liveness_never_asks_about_readiness(documents: list[dict[str, Any]]) -> None:
    """A pod that is catching up or draining is not ready, and must not be killed for it."""
    for container in containers(documents):
        if "livenessProbe" in container:
            assert container["livenessProbe"].get("grpc", {}).get("service", "live") == "live"
            assert container["livenessProbe"].get("httpGet", {}).get("path", "/livez") == "/livez"


def test_the_workers_spool_outlives_its_pod(documents: list[dict[str, Any]]) -> None:
    worker = named(documents, "StatefulSet")["providers-worker"]
    (claim,) = worker["spec"]["volumeClaimTemplates"]
    (container,) = pod(worker)["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["BOURSE_PROVIDERS_SPOOL_DIRECTORY"] == mounted[claim["metadata"]["name"]]
    retention = worker["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenScaled": "Retain", "whenDeleted": "Retain"}


def test_every_variable_is_a_setting(documents: list[dict[str, Any]]) -> None:
    known = {
        variable
        for found in settings.all_classes().values()
        for settings_class in found
        for variable in settings.variables(settings_class)
    }
    given = set(config(documents))
    for container in containers(documents):
        given |= {entry["name"] for entry in container.get("env", ())}
    assert {name for name in given if OUR_VARIABLES.match(name)} <= known


def test_calls_between_services_go_to_services_that_exist(
    documents: list[dict[str, Any]],
) -> None:
    services = named(documents, "Service")
    for name, value in config(documents).items():
        if found := re.fullmatch(r"dns:///([a-z-]+)\.bourse\.svc\.cluster\.local:(\d+)", value):
            spec = services[found[1]]["spec"]
            assert spec["clusterIP"] == "None", name
            assert [port["port"] for port in spec["ports"]] == [int(found[2])]


def test_every_pod_a_policy_or_service_selects_exists(documents: list[dict[str, Any]]) -> None:
    labels = {
        workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for workload in workloads(documents)
    }
    label = r"'podSelector': {'matchLabels': {'app.kubernetes.io/name': '([a-z-]+)'"
    selected = re.findall(label, str(documents))
    services = [one["spec"]["selector"] for one in named(documents, "Service").values()]
    selected += [selector["app.kubernetes.io/name"] for selector in services]
    assert selected
    assert set(selected) <= labels


def test_traffic_is_denied_unless_a_policy_allows_it(documents: list[dict[str, Any]]) -> None:
    deny = named(documents, "NetworkPolicy")["default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_migration_runs_the_image_of_the_service_it_migrates(
    documents: list[dict[str, Any]],
) -> None:
    for job in named(documents, "Job").values():
        (container,) = pod(job)["containers"]
        module, service = container["args"]
        assert module == "bourse.migrate"
        assert container["image"].split(":")[0] == f"bourse/{service}"


def test_containers_run_services_that_exist(documents: list[dict[str, Any]]) -> None:
    from services.__main__ import MODULES

    run = {
        container["args"][1]
        for container in containers(documents)
        if container["args"][0] == "services"
    }
    assert run == set(MODULES)
