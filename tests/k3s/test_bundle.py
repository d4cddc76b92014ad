"""`edge k3s bundle`: the drop-in directory, whole and the same each time, or nothing and a sentence."""

from __future__ import annotations

import base64
import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
import zstandard

from bench.chart import CHART, VERSIONS, faults, pod_of, render
from edge.errors import ArchiveUnusable, ConfigurationError, DiskFull, ModelUnusable
from edge.k3s.bundle import Bundle, Carried, Wish, make_bundle
from edge.k3s.chart import packed
from edge.k3s.manifest import yaml_map
from edge.k3s.reference import full_name, is_full
from tests.conftest import RunEdge
from tests.k3s.archives import NAME, Contents, Docker, Oci, config
from tests.waiting import until

IMAGES = "rootfs/var/lib/rancher/k3s/agent/images"
MANIFESTS = "rootfs-server/var/lib/rancher/k3s/server/manifests"
NEWEST = VERSIONS[-1]


class Quiet:
    """Nobody looks."""

    def goes_on(self, what: str, done_bytes: int) -> None:
        """Nothing."""


def make(target: Path, image: Path, *models: Path, **wishes: Any) -> Bundle:
    wish = {"image_name": None, "keys": None, "values": None, "namespace": "edge", **wishes}
    along = tuple(Carried(model, model.name) for model in models)
    return make_bundle(Wish(image=image, models=along, **wish), target, Quiet())


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def image_in(directory: Path) -> tarfile.TarFile:
    (path,) = (directory / IMAGES).glob("*.tar.zst")
    with path.open("rb") as file:
        return tarfile.open(fileobj=io.BytesIO(zstandard.ZstdDecompressor().stream_reader(file).read()))


def helm_chart(directory: Path) -> dict[str, Any]:
    found = yaml.safe_load((directory / MANIFESTS / "edge-node.yaml").read_text())
    assert isinstance(found, dict)
    return found


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [Oci(), Docker()], ids=["oci", "docker"])
@pytest.mark.parametrize("packing", [".tar", ".tar.gz", ".tar.zst"])
def test_an_archive_becomes_an_import_of_k3s(tmp_path: Path, archive: Contents, packing: str) -> None:
    made = make(tmp_path / "b", archive.write(tmp_path / f"image{packing}"))
    assert (str(made.image.name), made.image.architecture) == (NAME, "amd64")
    assert os.listdir(tmp_path / "b" / IMAGES) == ["edge-node-0.1.0-amd64.tar.zst"]
    with image_in(tmp_path / "b") as tar:
        found = {entry.name: entry for entry in tar}
        for name, data in archive.files.items():
            member = tar.extractfile(name)
            assert member is not None and member.read() == data
    assert set(found) == {*archive.files, *archive.links}
    assert {(entry.mtime, entry.uid, entry.mode) for entry in found.values()} == {(0, 0, 0o644)}


def test_the_same_image_gives_the_same_bytes_whenever_it_was_saved(tmp_path: Path, tiny_gguf: Path) -> None:
    make(tmp_path / "one", Oci().write(tmp_path / "a.tar", mtime=1, uid=1000), tiny_gguf)
    make(tmp_path / "two", Oci().write(tmp_path / "b.tar.gz", mtime=1_700_000_000), tiny_gguf)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_chart_in_it_is_the_chart(tmp_path: Path, tiny_gguf: Path) -> None:
    make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), tiny_gguf)
    found = helm_chart(tmp_path / "b")
    assert not faults(found, NEWEST)
    spec = found["spec"]
    assert (spec["targetNamespace"], spec["failurePolicy"]) == ("edge", "abort")
    archive = tmp_path / "decoded.tgz"
    archive.write_bytes(base64.b64decode(spec["chartContent"], validate=True))
    values = yaml.safe_load(spec["valuesContent"])
    objects = render(NEWEST, values, chart=archive, release="edge-node")
    assert objects == render(NEWEST, values, chart=CHART, release="edge-node")
    assert not [fault for one in objects for fault in faults(one, NEWEST)]
    pod = pod_of(objects)
    assert pod["containers"][0]["image"] == NAME and pod["containers"][0]["imagePullPolicy"] == "Never"
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert {"name": "EDGE_MODEL__NAME", "value": "/models/tiny.gguf"} in pod["containers"][0]["env"]
    assert archive.read_bytes() == (tmp_path / "b" / "helm" / "edge-node-0.1.0.tgz").read_bytes()
    assert values == yaml.safe_load((tmp_path / "b" / "helm" / "values.yaml").read_text())


def test_models_come_along_and_the_first_is_the_nodes_own(tmp_path: Path, tiny_gguf: Path) -> None:
    second = tmp_path / "second.v2.gguf"
    second.write_bytes(tiny_gguf.read_bytes())
    make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), tiny_gguf, second)
    lie = tmp_path / "b" / "rootfs/var/lib/edge-models"
    assert (lie / "tiny.gguf").read_bytes() == (lie / "second.v2.gguf").read_bytes() == tiny_gguf.read_bytes()
    values = yaml.safe_load(helm_chart(tmp_path / "b")["spec"]["valuesContent"])
    assert values["config"]["models"] == {"second.v2": {"source": "/models/second.v2.gguf"}}
    objects = render(NEWEST, values, release="edge-node")
    volume = next(one for one in pod_of(objects)["volumes"] if one["name"] == "models")
    assert volume["hostPath"]["path"] == "/var/lib/edge-models"


def test_a_model_that_is_known_comes_along_by_its_name(tmp_path: Path, run_edge: RunEdge) -> None:
    image = Oci().write(tmp_path / "i.tar")
    done = run_edge("k3s", "bundle", "--image", str(image), "--to", str(tmp_path / "b"), "--model", "edge-builtin")
    assert done.returncode == 0, done.stderr
    builtin = CHART.parent.parent / "models" / "builtin" / "edge-builtin-q4_0.gguf"
    assert (tmp_path / "b/rootfs/var/lib/edge-models/edge-builtin.gguf").read_bytes() == builtin.read_bytes()
    unknown = run_edge("k3s", "bundle", "--image", str(image), "--to", str(tmp_path / "c"), "--model", "no-such")
    assert unknown.returncode == 1 and "unknown model 'no-such': known are" in unknown.stderr


_ENROLLMENT = "enrollment: {url: https://fleet.example:8443, existingSecret: token}\n"


def test_keys_and_the_sites_values_come_along(tmp_path: Path, run_edge: RunEdge, home: Path) -> None:
    secret = run_edge("keys", "create", "robot-7").stdout.strip()
    site = tmp_path / "site.yaml"
    site.write_text("hostPort: 8080\n\nconfig:\n  engine:\n    slots: 2  # few\n" + _ENROLLMENT)
    make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), keys=home / "keys.json", values=site, namespace="plant")
    namespace, kept = yaml.safe_load_all((tmp_path / "b" / "keys" / "edge-node-keys.yaml").read_text())
    assert not faults(namespace, NEWEST) and not faults(kept, NEWEST)
    assert namespace["metadata"]["name"] == kept["metadata"]["namespace"] == "plant"
    assert base64.b64decode(kept["data"]["keys.json"]) == (home / "keys.json").read_bytes()
    assert not [name for name, data in contents(tmp_path / "b").items() if secret.encode() in data]
    override = yaml.safe_load((tmp_path / "b" / MANIFESTS / "edge-node-values.yaml").read_text())
    assert not faults(override, NEWEST)
    chart = helm_chart(tmp_path / "b")
    assert override["metadata"] == chart["metadata"], "K3s finds what belongs together by the name"
    assert override["spec"]["failurePolicy"] == "abort", "the resource's default would win over the HelmChart's"
    layers = [tmp_path / "bundle.yaml", tmp_path / "over.yaml"]
    for path, found in zip(layers, (chart, override), strict=True):
        path.write_text(found["spec"]["valuesContent"])
    objects = render(NEWEST, files=layers)
    assert pod_of(objects)["containers"][0]["ports"][0]["hostPort"] == 8080
    assert kept["metadata"]["name"] in str(pod_of(objects)["volumes"])
    assert pod_of(objects)["containers"][1]["args"][:2] == ["--fleet", "https://fleet.example:8443"]
    assert "create secret generic SECRET --from-file=token" in (tmp_path / "b" / "README.md").read_text()


def commands(directory: Path) -> list[str]:
    """Those that the stick's README gives, in order."""
    return [line.strip() for line in (directory / "README.md").read_text().splitlines() if line[:4] == "    "]


def on_machine(command: str, machine: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the README as it stands, but for sudo and for the machine's root, which is a directory here."""
    there = command.replace("sudo ", "").replace(" /var/", f" {machine}/var/").replace(" /'", f" {machine}'")
    return subprocess.run(there, shell=True, cwd=directory, capture_output=True, text=True, check=False)


def test_what_the_readme_says_installs_it(tmp_path: Path, tiny_gguf: Path, home: Path, run_edge: RunEdge) -> None:
    run_edge("keys", "create", "robot-7")
    made = make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), tiny_gguf, keys=home / "keys.json")
    check, machines, restart, keys, server, status, *_ = commands(tmp_path / "b")
    assert (restart, keys) == ("sudo systemctl restart k3s", "sudo k3s kubectl apply -f keys/edge-node-keys.yaml")
    assert status.startswith("sudo k3s kubectl --namespace edge rollout status daemonset/edge-node")
    machine = tmp_path / "machine"
    machine.mkdir()
    assert on_machine(check, machine, tmp_path / "b").returncode == 0
    assert on_machine(machines, machine, tmp_path / "b").returncode == 0
    everywhere = {
        "var/lib/edge-models/tiny.gguf",
        "var/lib/rancher/k3s/agent/images/edge-node-0.1.0-amd64.tar.zst",
    }
    assert set(contents(machine)) == everywhere, "an agent has nothing else to apply"
    assert on_machine(server, machine, tmp_path / "b").returncode == 0
    applied_at_each_start = {"var/lib/rancher/k3s/server/manifests/edge-node.yaml"}
    assert set(contents(machine)) == everywhere | applied_at_each_start, "no Secret: revoked keys would come back"
    assert made.files == len(contents(tmp_path / "b"))
    (tmp_path / "b" / "helm" / "values.yaml").write_text("changed")
    assert on_machine(check, machine, tmp_path / "b").returncode == 1


def test_a_second_stick_replaces_what_is_mapped_and_its_readme_removes_what_is_old(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    for name, version, models in (("one", "1", (tiny_gguf,)), ("two", "2", (tiny_gguf,))):
        image = Oci(f"registry.example/edge-node:{version}").write(tmp_path / f"{name}.tar")
        make(tmp_path / name, image, *models)
        _, machines, *_ = commands(tmp_path / name)
        running = machine / "var/lib/edge-models/tiny.gguf"
        before = running.open("rb") if running.exists() else None
        assert on_machine(machines, machine, tmp_path / name).returncode == 0
        if before is not None:
            with before:
                assert os.fstat(before.fileno()).st_nlink == 0, "what a running node has mapped was written into"
    (machine / "var/lib/edge-models/old.gguf").touch()
    (machine / "var/lib/rancher/k3s/agent/images/k3s-airgap-images.tar.zst").touch()
    *_, archives, models_left = commands(tmp_path / "two")
    assert on_machine(archives, machine, tmp_path / "two").returncode == 0
    images = sorted(os.listdir(machine / "var/lib/rancher/k3s/agent/images"))
    assert images == ["edge-node-2-amd64.tar.zst", "k3s-airgap-images.tar.zst"]
    shown = on_machine(models_left, machine, tmp_path / "two").stdout
    assert shown == f"{machine}/var/lib/edge-models/old.gguf\n"


@pytest.mark.parametrize("described", ["oci", "docker"])
def test_another_image_or_model_under_the_same_name_is_another_pod(
    tmp_path: Path, tiny_gguf: Path, described: str
) -> None:
    def template(target: str, created: str, model: bytes) -> Any:
        file = tmp_path / "m.gguf"
        file.write_bytes(model)
        one = config(created=created)
        archive = Oci(configs=(one,)) if described == "oci" else Docker(described=one)
        make(tmp_path / target, archive.write(tmp_path / "i.tar"), file)
        values = yaml.safe_load(helm_chart(tmp_path / target)["spec"]["valuesContent"])
        objects = render(NEWEST, values, release="edge-node")
        return next(one["spec"]["template"] for one in objects if one["kind"] == "DaemonSet")

    model = tiny_gguf.read_bytes()
    first = template("a", "2026-01-01T00:00:00Z", model)
    assert template("b", "2026-01-01T00:00:00Z", model) == first
    image = template("c", "2026-01-02T00:00:00Z", model)
    weights = template("d", "2026-01-01T00:00:00Z", model[:-1] + bytes([model[-1] ^ 1]))
    assert image["spec"] == weights["spec"] == first["spec"], "the names say nothing"
    assert image["metadata"] != first["metadata"] != weights["metadata"]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_nodes_user_can_read_it_whoever_made_it(
    tmp_path: Path, tiny_gguf: Path, home: Path, run_edge: RunEdge, umask: int
) -> None:
    run_edge("keys", "create", "robot-7")
    image = Oci().write(tmp_path / "i.tar")
    before = os.umask(umask)
    try:
        make(tmp_path / "b", image, tiny_gguf, keys=home / "keys.json", cache_file=True)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path / "b"): path.stat().st_mode & 0o777 for path in (tmp_path / "b").rglob("*")}
    for path, mode in modes.items():
        closed = path.parts[0] == "keys"
        directory = (tmp_path / "b" / path).is_dir()
        assert mode == (0o700 if closed else 0o755) if directory else (0o600 if closed else 0o644), path
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_the_machines_umask_and_the_sticks_modes_do_not_matter_to_the_copy(tmp_path: Path, tiny_gguf: Path) -> None:
    make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), tiny_gguf)
    for path in (tmp_path / "b" / "rootfs").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # as a stick may be mounted
    machine = tmp_path / "machine"
    (machine / "var").mkdir(parents=True)
    (machine / "var").chmod(0o711)
    before = os.umask(0o077)
    try:
        done = on_machine(commands(tmp_path / "b")[1], machine, tmp_path / "b")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert (machine / "var").stat().st_mode & 0o777 == 0o711, "what is the machine's stays as it is"
    assert (machine / "var/lib/edge-models").stat().st_mode & 0o777 == 0o755
    assert (machine / "var/lib/edge-models/tiny.gguf").stat().st_mode & 0o777 == 0o644


def test_k3ss_cache_file_comes_only_when_asked_for(tmp_path: Path) -> None:
    image = Oci().write(tmp_path / "i.tar")
    make(tmp_path / "b", image, cache_file=True)
    assert (tmp_path / "b" / IMAGES / ".cache.json").read_bytes() == b""
    assert "K3s from before\nJuly 2026" in (tmp_path / "b" / "README.md").read_text()


def test_the_packed_chart_is_the_same_each_time_and_without_times() -> None:
    assert packed(CHART) == packed(CHART)
    with tarfile.open(fileobj=io.BytesIO(packed(CHART))) as tar:
        assert {(entry.mtime, entry.uid) for entry in tar} == {(0, 0)}
        assert {"edge-node/Chart.yaml", "edge-node/values.schema.json"} <= set(tar.getnames())


@pytest.mark.parametrize(
    ("text", "full", "states_all"),
    [
        ("edge-node:1", "docker.io/library/edge-node:1", False),
        ("me/edge-node", "docker.io/me/edge-node:latest", False),
        ("localhost/edge-node:dev", "localhost/edge-node:dev", True),
        ("r.example:5000/a/b:2", "r.example:5000/a/b:2", True),
        ("r.example:5000/a/b", "r.example:5000/a/b:latest", False),
    ],
)
def test_names_are_completed_as_the_kubelet_does(text: str, full: str, states_all: bool) -> None:
    assert str(full_name(text)) == full and is_full(text) is states_all


def test_values_are_written_as_yaml_reads_them() -> None:
    values = {
        "a": {"b-c": {"true": "yes: #\u00e4\n"}, "empty": {}, "list": [1, "x"]},
        "n": None,
        "kubernetes.io/arch": "on",
    }
    assert yaml.safe_load(yaml_map(values)) == values


# --- archives that will not do ----------------------------------------------------------------------------------------


def _damaged() -> Contents:
    archive = Oci()
    name = next(name for name in archive.files if name.startswith("blobs/"))
    archive.files[name] += b" "
    return archive


def _without(archive: Contents, of: Callable[[str, bytes], bool]) -> Contents:
    archive.files = {name: data for name, data in archive.files.items() if not of(name, data)}
    return archive


def _docker_damaged() -> Contents:
    archive = Docker()
    archive.files[archive.layer] = archive.files[archive.layer].replace(b"hello", b"jello")
    return archive


def _docker_layerless() -> Contents:
    archive = Docker()
    del archive.files[archive.layer]
    return archive


ARM = config("arm64")
_LAYOUT = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
UNUSABLE: list[tuple[str, Contents, str]] = [
    ("another-image", Oci(configs=(config(env=("PATH=/bin",)),)), r"holds another image than the node's"),
    ("damaged", _damaged(), r"is damaged: blobs/sha256/\w+ has another checksum"),
    (
        "layer-missing",
        _without(Oci(), lambda _, data: data[:2] == b"\x1f\x8b"),
        r"not whole: the layer sha256:\w+ is missing",
    ),
    (
        "config-missing",
        _without(Oci(), lambda _, data: b"rootfs" in data),
        r"not whole: blobs/.* cannot be read \(it is missing",
    ),
    (
        "several-images",
        Oci("r.example/a:1", "r.example/b:1"),
        r"several images \(r.example/a:1, r.example/b:1\): choose one",
    ),
    ("several-machines", Oci(configs=(config(), ARM)), r"several kinds of machines \(amd64, arm64\)"),
    ("short-name", Oci("edge-node:1"), r"named 'edge-node:1', and containerd wants registry, path and tag"),
    ("docker-damaged", _docker_damaged(), r"damaged: old/layer.tar has another checksum than stated"),
    ("docker-layerless", _docker_layerless(), r"not whole: old/layer.tar is missing"),
    ("index-of-a-list", Contents({**_LAYOUT, "index.json": b"[]"}), r"not as it must be"),
    ("index-of-text", Contents({**_LAYOUT, "index.json": b'{"manifests": ["a"]}'}), r"not as it must be"),
    ("index-too-deep", Contents({**_LAYOUT, "index.json": b"[" * 100_000}), r"not as it must be"),
    ("nothing-said", Contents({**_LAYOUT, "index.json": b'{"manifests": [{"annotations": null}]}'}), r"not as it must"),
    ("docker-no-json", Contents({"manifest.json": b"{"}), r"not as it must be"),
    ("docker-no-config", Contents({"manifest.json": b'[{"Layers": []}]'}), r"not as it must be \(KeyError: 'Config'\)"),
    ("no-image", Contents({"a.txt": b"x"}), r"neither index.json nor manifest.json"),
]


@pytest.mark.parametrize(("archive", "said"), [one[1:] for one in UNUSABLE], ids=[one[0] for one in UNUSABLE])
def test_wrong_archives_are_refused_and_nothing_is_left(tmp_path: Path, archive: Contents, said: str) -> None:
    path = archive.write(tmp_path / "i.tar")
    with pytest.raises(ArchiveUnusable, match=said):
        make(tmp_path / "b", path)
    assert os.listdir(tmp_path) == ["i.tar"]


@pytest.mark.parametrize("packing", [".tar", ".tar.gz", ".tar.zst"])
def test_an_archive_that_ends_early_is_refused(tmp_path: Path, packing: str) -> None:
    path = Oci().write(tmp_path / f"i{packing}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ArchiveUnusable, match=r"write it with `podman save"):
        make(tmp_path / "b", path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 4096])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "i.tar"
    path.write_bytes(data)
    with pytest.raises(ArchiveUnusable, match=r"no archive of a container image"):
        make(tmp_path / "b", path)
    with pytest.raises(ArchiveUnusable, match=r"cannot read .*: No such file"):
        make(tmp_path / "b", tmp_path / "lost.tar")
    with pytest.raises(ArchiveUnusable, match=r"cannot read /proc/self/mem: Input/output error"):
        make(tmp_path / "b", Path("/proc/self/mem"))


def test_one_of_several_images_can_be_chosen(tmp_path: Path) -> None:
    path = Oci("r.example/a:1", "r.example/b:1").write(tmp_path / "i.tar")
    assert str(make(tmp_path / "b", path, image_name="r.example/b:1").image.name) == "r.example/b:1"
    with pytest.raises(ArchiveUnusable, match=r"has no image 'c:1'; it has r.example/a:1, r.example/b:1"):
        make(tmp_path / "c", path, image_name="c:1")


def test_dockers_names_are_those_that_containerd_will_have(tmp_path: Path) -> None:
    assert str(make(tmp_path / "a", Docker("edge-node:1").write(tmp_path / "a.tar")).image.name) == (
        "docker.io/library/edge-node:1"
    )
    noted = Oci("docker.io/library/edge-node:2", note="io.containerd.image.name")
    assert str(make(tmp_path / "b", noted.write(tmp_path / "b.tar")).image.name) == "docker.io/library/edge-node:2"


def test_an_image_of_another_machine_is_for_that_machine(tmp_path: Path) -> None:
    make(tmp_path / "b", Oci(configs=(ARM,)).write(tmp_path / "i.tar"))
    values = yaml.safe_load(helm_chart(tmp_path / "b")["spec"]["valuesContent"])
    assert values["nodeSelector"] == {"kubernetes.io/arch": "arm64"}


# --- other inputs, and disks ------------------------------------------------------------------------------------------


def test_inputs_that_will_not_do_are_named(tmp_path: Path, tiny_gguf: Path) -> None:
    image = Oci().write(tmp_path / "i.tar")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:100])
    empty = tmp_path / "keys.json"
    empty.write_text('{"version": 1, "keys": []}')
    cases: list[tuple[type[Exception], str, dict[str, Any], tuple[Path, ...]]] = [
        (ModelUnusable, "is no GGUF file", {}, (tmp_path / "m.onnx",)),
        (ModelUnusable, "broken.gguf", {}, (broken,)),
        (ModelUnusable, "'a b.gguf' is no name for a model", {}, (tmp_path / "a b.gguf",)),
        (ModelUnusable, "two models are named tiny.gguf", {}, (tiny_gguf, tiny_gguf)),
        (ConfigurationError, "holds no API keys", {"keys": empty}, ()),
        (ConfigurationError, "holds no API keys", {"keys": tmp_path / "lost.json"}, ()),
        (ConfigurationError, r"cannot read .*: No such file", {"values": tmp_path / "lost.yaml"}, ()),
    ]
    for kind, said, wishes, models in cases:
        with pytest.raises(kind, match=said):
            make(tmp_path / "b", image, *models, **wishes)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigurationError, match="exists already"):
        make(tmp_path, image)
    with pytest.raises(ConfigurationError, match="there is no directory"):
        make(tmp_path / "no" / "b", image)


def test_a_stick_that_is_too_small_is_left_as_it_was(
    small_disk: tuple[Path, Callable[[], None], Callable[[], None]], tmp_path: Path
) -> None:
    stick, in_child, enlarge = small_disk
    archive = Oci()
    archive.blob(os.urandom(8 << 20), "application/octet-stream")
    image = archive.write(tmp_path / "i.tar")
    command = [sys.executable, "-m", "edge", "k3s", "bundle", "--image", str(image), "--to", str(stick / "edge")]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, preexec_fn=in_child, timeout=240, check=False)

    done = run()
    assert done.returncode == 1
    assert "use a larger stick" in done.stderr or "format the stick as exFAT" in done.stderr
    assert os.listdir(stick) == []
    enlarge()
    assert run().returncode == 0 and os.listdir(stick) == ["edge"]


def test_models_that_cannot_fit_are_noticed_before_anything_is_written(tmp_path: Path, tiny_gguf: Path) -> None:
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(tiny_gguf.read_bytes())
    os.truncate(huge, 10**15 if _sparse_petabytes(tmp_path) else 10**13)
    with pytest.raises(DiskFull, match=r"not enough space: the models have .* use a larger stick"):
        make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), huge)


def _sparse_petabytes(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.truncate(probe, 10**15)
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


# --- values of the site, and GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "  hostPort: 8080\n  config:\n    engine:\n      slots: 2\n",
        "    # ours\nhostPort: 8080\nconfig: {engine: {slots: 2}}",
        "\ufeffhostPort: 8080\r\nconfig:\r\n  engine:\r\n    slots: 2\r\n",
        "---\n\n\nhostPort: 8080\n\nconfig: {engine: {slots: 2}}\n...\n",
        "hostPort: 8080 # \u2028# \U0001f916 \x85\nconfig: {engine: {slots: 2}}\n",
    ],
    ids=["indented", "indented-comment", "windows", "document", "odd-breaks"],
)
def test_values_arrive_as_they_were_meant(tmp_path: Path, text: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_bytes(text.encode())
    make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), values=site)
    found = yaml.safe_load((tmp_path / "b" / MANIFESTS / "edge-node-values.yaml").read_text("utf-8"))
    assert not faults(found, NEWEST) and found["spec"]["failurePolicy"] == "abort"
    wanted = {"hostPort": 8080, "config": {"engine": {"slots": 2}}}
    assert yaml.safe_load(found["spec"]["valuesContent"]) == wanted
    assert yaml.safe_load((tmp_path / "b" / "helm" / "site-values.yaml").read_text("utf-8")) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", r"site.yaml, line 2, is not YAML: expected"),
        ("a:\n\t- 1\n", r"site.yaml, line 2, is not YAML: .*cannot start any token"),
        ("a: 1\n---\nb: 2\n", r"is not YAML: .*another document"),
        ("hostPort: 1\nhostPort: 2\n", r"line 1, is not YAML: hostPort stands there twice"),
        ("- hostPort\n", r"site.yaml is no map of values"),
        ("hostport: 8080\n", r"site.yaml will not do for the chart: the values: .*'hostport' was unexpected"),
        ("config: {slo: {ttft: 5}}\n", r"config.slo: .*'ttft' was unexpected"),
        ("hostPort: '8080'\n", r"hostPort: '8080' is not of type 'integer'"),
        ("nodeSelector: {a: 2026-01-01, b: 1}\n", r"nodeSelector.b: 1 is not of type 'string'"),
        ("model: {file: no}\n", r"model.file: False is not of type 'string'"),
        ('model: {file: "m.bin"}\n', r"model.file: 'm.bin' does not match"),
        ("\x00", r"is not YAML: .*special characters are not allowed"),
    ],
)
def test_values_that_the_chart_would_refuse_are_refused_here(tmp_path: Path, text: str, said: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        make(tmp_path / "b", Oci().write(tmp_path / "i.tar"), values=site)
    assert sorted(os.listdir(tmp_path)) == ["i.tar", "site.yaml"]


def test_every_example_is_accepted_as_values_of_a_site(tmp_path: Path) -> None:
    image = Oci().write(tmp_path / "i.tar")
    examples = sorted((CHART.parent / "examples").glob("*.yaml"))
    assert len(examples) >= 10
    for example in examples:
        values = yaml.safe_load(example.read_text())
        site = tmp_path / example.name
        site.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != "image"}))
        make(tmp_path / example.stem, image, values=site)


def test_values_that_ask_for_an_image_that_is_not_on_the_stick_are_refused(tmp_path: Path) -> None:
    image = Oci().write(tmp_path / "i.tar")
    site = tmp_path / "site.yaml"
    for given in ("tag: 0.2.0", "repository: r.example/other", f"digest: sha256:{'a' * 64}"):
        site.write_text(f"image: {{{given}}}\n")
        with pytest.raises(ConfigurationError, match=r"image\.\w+ in .*site.yaml says .*, and the stick brings"):
            make(tmp_path / "b", image, values=site)
    for given in (NAME.partition(":")[2], "0.2.0, pullPolicy: IfNotPresent"):
        site.write_text(f"image: {{tag: {given}}}\n")
        make(tmp_path / given, image, values=site)


FOR_GPUS = config(env=("EDGE_HOME=/var/lib/edge", "NVIDIA_VISIBLE_DEVICES=all"))


def test_an_image_for_gpus_needs_a_word_on_how_pods_get_one(tmp_path: Path) -> None:
    image = Oci(configs=(FOR_GPUS,)).write(tmp_path / "i.tar")
    site = tmp_path / "site.yaml"
    site.write_text("gpu: {mode: mig, mig: {profile: 1g.5gb}}\n")
    other = tmp_path / "other.yaml"
    other.write_text("hostPort: 8080\n")
    for values in (None, other):
        with pytest.raises(ConfigurationError, match=r"is made for GPUs, and nothing says .*give --gpu runtimeOnly"):
            make(tmp_path / "b", image, values=values)
        assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigurationError, match=r"--gpu says none, and gpu.mode in .*site.yaml says mig"):
        make(tmp_path / "b", image, values=site, gpu="none")
    make(tmp_path / "by-values", image, values=site)
    for mode in ("none", "devicePlugin", "runtimeOnly"):
        make(tmp_path / mode, image, gpu=mode)
        values = yaml.safe_load(helm_chart(tmp_path / mode)["spec"]["valuesContent"])
        container = pod_of(render(NEWEST, values, release="edge-node"))["containers"][0]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (mode == "devicePlugin")
        assert any(one["name"] == "NVIDIA_VISIBLE_DEVICES" for one in container["env"]) == (mode == "runtimeOnly")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "yaml.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')\n"
    )
    (tmp_path / "site.yaml").write_text("hostPort: 8080\n")
    code = f"""import sys; sys.path.insert(0, {str(tmp_path / "without")!r})
from pathlib import Path
from edge.errors import ConfigurationError
from edge.k3s.site import read_site
try: read_site(Path({str(tmp_path / "site.yaml")!r}))
except ConfigurationError as error: print(error.message)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs the package yaml: pip install 'edge-node[bundle]'" in done.stdout


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_made_and_what_is_missing(tmp_path: Path, run_edge: RunEdge) -> None:
    image = Oci().write(tmp_path / "i.tar")
    done = run_edge("k3s", "bundle", "--image", str(image), "--to", str(tmp_path / "my stick"))
    assert done.returncode == 0
    assert f"is made: {NAME} for amd64, 6 files" in done.stdout and f"cd '{tmp_path}/my stick'" in done.stdout
    assert "it has no API keys" in done.stderr
    again = run_edge("k3s", "bundle", "--image", str(image), "--to", str(tmp_path / "my stick"))
    assert again.returncode == 78 and "exists already; remove it" in again.stderr
    wrong = run_edge("k3s", "bundle", "--image", str(image), "--to", str(tmp_path / "x"), "--namespace", "A_b")
    assert wrong.returncode == 2 and "0-9 and dash" in wrong.stderr


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, by: signal.Signals) -> None:
    fifo = tmp_path / "i.tar"
    os.mkfifo(fifo)  # an archive that never comes

    def opened() -> IO[bytes] | None:
        try:
            return open(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
        except OSError as error:
            assert error.errno == errno.ENXIO, error  # nobody reads it yet
            return None

    command = [sys.executable, "-m", "edge", "k3s", "bundle", "--image", str(fifo), "--to", str(tmp_path / "b")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with until(opened):
            assert len(os.listdir(tmp_path)) == 2, "its draft is there"
            process.send_signal(by)
            _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert os.listdir(tmp_path) == ["i.tar"]


def test_a_wheel_has_the_chart(tmp_path: Path) -> None:
    root = CHART.parent.parent
    build = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    for path in CHART.rglob("*"):
        if path.is_file():
            assert f"edge/_chart/{path.relative_to(CHART)}" in names
