"""`pull` and `push` against a stand-in for huggingface_hub: no network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.bundle import open_bundle
from tests.cli.conftest import Edgeclip


class Hub:
    """One repository on a disk. `damage` is called with the folder that was downloaded into."""

    def __init__(self, repository: Path) -> None:
        self.repository, self.calls = repository, []
        self.damage: Any = lambda folder: None

    def snapshot_download(self, repo: str, revision: str | None, local_dir: Path) -> None:
        """Copies the repository, and leaves what the real one leaves."""
        self.calls.append(("download", repo, revision))
        shutil.copytree(self.repository, local_dir, dirs_exist_ok=True)
        (local_dir / "README.md").write_text("not of the bundle")
        (local_dir / ".cache/huggingface").mkdir(parents=True)
        (local_dir / ".cache/huggingface/record").write_text("")
        self.damage(Path(local_dir))

    def HfApi(self) -> SimpleNamespace:
        """The part of the client that is used."""
        return SimpleNamespace(create_repo=self._create, upload_folder=self._upload)

    def _create(self, repo: str, **options: Any) -> None:
        self.calls.append(("create", repo, options))

    def _upload(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload", options))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    found = Hub(toy)
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return found


def refuse(*_: object) -> None:
    raise ConnectionError("401 Client Error.\n\nRepository Not Found\nfor url")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["me/pets", "hf:me/pets"])
def test_pull_keeps_only_the_bundle(name: str, hub: Hub, toy: Path, edgeclip: Edgeclip) -> None:
    said = edgeclip("pull", name, "--revision", "v2", "--json")
    assert said.code == 0
    assert said.record == {"path": "pets", "name": "toy", "digest": open_bundle(toy).digest}
    assert hub.calls == [("download", "me/pets", "v2")]
    assert files(Path("pets")) == files(toy)
    assert not Path("pets/.cache").exists()
    again = edgeclip("pull", name)
    assert (again.code, again.line) == (
        2,
        "edgeclip: pets: already exists. Choose another place, or pass --overwrite to replace it.",
    )
    assert edgeclip("pull", name, "--overwrite").code == 0


def tamper(folder: Path) -> None:
    graph = folder / "graphs/image-fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (tamper, 1, "me/pets on the Hub/graphs/image-fp32.onnx: SHA-256 is "),
        (lambda f: (f / "tokenizer.json").unlink(), 2, "me/pets on the Hub/tokenizer.json: missing."),
        (lambda f: (f / "bundle.json").unlink(), 2, "me/pets on the Hub: no bundle.json in it."),
        (lambda f: (f / "tokenizer.json").write_text("{"), 2, "me/pets on the Hub/tokenizer.json: 1 bytes, the"),
        (refuse, 2, "me/pets: cannot download from the Hub: 401 Client Error."),
    ],
    ids=["tampered", "missing", "no bundle", "half", "refused"],
)  # fmt: skip
def test_bad_pull_leaves_nothing_behind(
    damage: Any, code: int, message: str, hub: Hub, edgeclip: Edgeclip
) -> None:
    hub.damage = damage
    said = edgeclip("pull", "me/pets", "-o", "out")
    assert said.code == code
    assert said.line.startswith(f"edgeclip: {message}")
    assert list(Path().iterdir()) == []


def test_bad_pull_keeps_the_old_folder(hub: Hub, toy: Path, edgeclip: Edgeclip) -> None:
    assert edgeclip("pull", "me/pets").code == 0
    hub.damage = tamper
    assert edgeclip("pull", "me/pets", "--overwrite").code == 1
    assert edgeclip("verify", "pets").code == 0
    assert [path.name for path in Path().iterdir()] == ["pets"]


def test_hub_bundle_is_downloaded_once(hub: Hub, photos: Path, edgeclip: Edgeclip) -> None:
    for _ in range(2):
        assert edgeclip("embed", photos, "-b", "hf:me/pets", "--json").code == 0
    assert hub.calls == [("download", "me/pets", None)]


def test_push_sends_only_what_the_manifest_lists(hub: Hub, toy: Path, edgeclip: Edgeclip) -> None:
    (toy / "private.txt").write_text("secret")
    said = edgeclip("push", toy, "me/pets", "--private", "--revision", "v2", "--json")
    assert said.code == 0
    assert said.record == {
        "repository": "me/pets",
        "commit": "https://hub/commit/1",
        "digest": open_bundle(toy).digest,
    }
    (_, repo, created), (_, sent) = hub.calls
    assert (repo, created) == ("me/pets", {"private": True, "exist_ok": True})
    assert (sent["repo_id"], sent["revision"], sent["folder_path"]) == ("me/pets", "v2", toy.resolve())
    assert sorted(sent["allow_patterns"]) == sorted(set(files(toy)) - {"private.txt"})


def test_push_refuses_a_damaged_bundle_and_tells_refusals(
    hub: Hub, toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_create", lambda *_, **__: refuse())
    assert (
        edgeclip("push", toy, "me/pets").line
        == "edgeclip: me/pets: cannot upload to the Hub: 401 Client Error."
    )
    tamper(toy)
    said = edgeclip("push", toy, "me/pets")
    assert (said.code, hub.calls) == (1, [])
    assert said.line.startswith(f"edgeclip: {toy}/graphs/image-fp32.onnx: SHA-256 is ")
