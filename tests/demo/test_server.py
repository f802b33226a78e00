"""The demo's server: what it answers, and whom it refuses."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.demo import Demo, serve, server
from edgeclip.demo.server import TOKEN
from edgeclip.errors import InputError
from tests.demo.conftest import BLUE, CELL, GREEN, RED, Served, png, serving
from tests.runtime.detectors import box_of, make_detector, score_of
from tests.runtime.toy import make_bundle, picture

NEAR = 1.5  # pixels of 320: making the scene smaller blurs a cell's border; the next cell is 40 away


def boxes(answer: dict[str, Any], label: str) -> list[list[float]]:
    return [row["box"] for row in answer["detections"] if row["label"] == label]


def test_boxes_stand_where_the_colours_are(served: Served) -> None:
    status, found = served.post("/detect", png(), prompts="red, a green cup")
    assert (status, found["size"], found["kept"]) == (200, [320, 320], False)
    (red,), (green,) = boxes(found, "red"), boxes(found, "a green cup")
    np.testing.assert_allclose(red, box_of(1, 1, 255, CELL), atol=NEAR)
    np.testing.assert_allclose(green, box_of(2, 5, 255, CELL), atol=NEAR)
    (score,) = (row["score"] for row in found["detections"] if row["label"] == "red")
    assert score == pytest.approx(score_of(RED, 1, "red"), abs=0.01)
    assert set(found["colours"]) == {"red", "a green cup"}
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in found["colours"].values())
    assert {"decode", "image tower", "head"} <= set(found["times_ms"])


def test_a_picture_is_looked_at_once(served: Served, looks: list[str]) -> None:
    served.post("/detect", png(), prompts="red")
    status, found = served.post(
        "/detect", prompts="blue, green", threshold=0.2, nms_iou=0.4, class_agnostic=True
    )
    assert (status, found["kept"], looks) == (200, True, ["propose"])
    assert "image tower" not in found["times_ms"]
    assert [row["label"] for row in found["detections"]] == ["blue", "green"]
    assert served.post("/detect", prompts="blue", threshold=1)[1]["detections"] == []
    served.post("/detect", png({(0, 0): BLUE}), prompts="blue")
    assert looks == ["propose", "propose"]


def test_options_reach_the_model(served: Served) -> None:
    """One cell that two labels claim: both stay, or one at a place."""
    asked = {"prompts": "red, yellow", "threshold": 0.01}
    cells = png({(3, 3): (255, 40, 0)})
    both = served.post("/detect", cells, **asked)[1]["detections"]
    assert sorted(row["label"] for row in both) == ["red", "yellow"]
    assert [
        row["label"] for row in served.post("/detect", **asked, class_agnostic=True)[1]["detections"]
    ] == ["red"]


def test_prompts_within_prompts(served: Served) -> None:
    for prompts in ("[red [red], blue]", "red [red], blue"):
        _, found = served.post("/detect", png(), prompts=prompts)
        assert [row["parent"] for row in found["detections"] if row["label"] == "blue"] == [-1]
        assert max(row["parent"] for row in found["detections"] if row["label"] == "red") >= 0
    status, said = served.post("/detect", png(), prompts="red [red")
    assert status == 400
    assert said["error"].startswith("prompts, column ")


def test_examples_find_their_like(served: Served, looks: list[str]) -> None:
    served.post("/detect", png({(1, 1): RED, (5, 5): RED, (2, 6): GREEN}), prompts="blue")
    status, _ = served.post("/example", box=box_of(1, 1, 255, CELL).tolist(), label="like 1")
    assert (status, looks) == (200, ["propose"])  # of the picture that is kept
    _, found = served.post("/detect", prompts="green", like=["like 1"], threshold=0.5)
    assert len(boxes(found, "like 1")) == 2
    assert len(boxes(found, "green")) == 1
    _, found = served.post("/detect", like=["like 1"], threshold=0.5)
    assert {row["label"] for row in found["detections"]} == {"like 1"}
    assert looks == ["propose"]
    # from another picture, which does not take the place of the one that is asked
    assert served.post("/example", png(), box=box_of(2, 5, 255, CELL).tolist(), label="like 2")[0] == 200
    _, found = served.post("/detect", prompts="[blue [blue]]", like=["like 2"], threshold=0.5)
    (green,) = boxes(found, "like 2")
    np.testing.assert_allclose(green, box_of(2, 6, 255, CELL), atol=NEAR)
    assert len(boxes(served.post("/detect", like=["like 1"], threshold=0.5)[1], "like 1")) == 2
    assert "also the name" in served.post("/detect", like=["like 2"], prompts="like 2")[1]["error"]


def test_only_a_few_pages_are_kept(served: Served) -> None:
    body = png()
    for number in range(6):
        assert served.post("/detect", body, page=f"page {number}", prompts="red")[0] == 200
    assert served.post("/detect", page="page 5", prompts="red")[0] == 200
    status, said = served.post("/detect", page="page 0", prompts="red")
    assert (status, said) == (409, {"error": "detect: no picture came, and none is kept. Send it again."})
    assert served.post("/example", page="page 1", box=[0, 0, 9, 9], label="a")[0] == 409


def test_only_a_few_examples_are_kept(served: Served) -> None:
    def show(label: str, *like: str) -> tuple[int, dict[str, Any]]:
        return served.post("/example", png(), page="q", box=[0, 0, 9, 9], label=label, like=like)

    names = [str(number) for number in range(8)]
    assert [show(name)[0] for name in names] == [200] * 8
    assert show("8", *names) == (400, {"error": "examples: at most 8. Remove one."})
    assert show("8", *names[2:])[0] == 200  # two of them were removed on the page
    assert served.post("/detect", png(), page="q", like=[*names[2:], "8"])[0] == 200
    _, said = served.post("/detect", page="q", like=["1"])
    assert said["error"] == "examples: '1' is no longer kept. Remove it, and show it again."


@pytest.mark.parametrize(
    ("picture", "line", "message"),
    [
        (b"no picture", {"prompts": "red"}, "image"),
        (png()[:200], {"prompts": "red"}, "cannot be decoded"),
        (png(), {}, "prompts: expected what to look for"),
        (png(), {"prompts": " , "}, "prompts: expected one or more"),
        (png(), {"prompts": ",".join(map(str, range(1001)))}, "prompts: expected at most 1000, got 1001."),
        (png(), {"prompts": "red", "threshold": 2}, "threshold: expected 0 to 1, got 2."),
        (png(), {"prompts": "red", "threshold": "2"}, 'request: threshold cannot be "2".'),
        (png(), {"prompts": "red", "nms_iou": float("nan")}, "request: nms_iou cannot be NaN."),
        (png(), {"prompts": "red", "class_agnostic": 1}, "request: class_agnostic cannot be 1."),
        (
            png(),
            {"prompts": "red", "file": "/etc/passwd"},
            "request: no such key 'file'; it takes page, prompts,",
        ),
        (png(), {"prompts": "x" * 70_000}, "request: expected at most 65536 bytes of JSON"),
        (png(), {"page": ""}, 'request: page cannot be "".'),
        (png(), {"prompts": ["red"]}, 'request: prompts cannot be ["red"].'),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else json.dumps(value)[:30],
)
def test_what_cannot_be_used_gets_one_line(
    picture: bytes, line: dict[str, Any], message: str, served: Served
) -> None:
    status, said = served.post("/detect", picture, **line)
    assert status == 400
    assert message in said["error"]
    assert "\n" not in said["error"]


@pytest.mark.parametrize("body", [b"", b"\n", b"[" * 60_000, b"[1]\n", b'{"page": 1}\n', b"\xff\xfe{}\n"])
def test_lines_that_are_none(body: bytes, served: Served) -> None:
    status, _, said = served.send("POST", "/detect", body)
    assert status == 400
    assert json.loads(said)["error"].startswith("request: ")


@pytest.mark.parametrize(
    "box", [[5, 5, 1, 1], [0, 0, 10**400, 1], [0, 0, 1], [400, 400, 500, 500], ["a", 0, 1, 1]]
)
def test_examples_that_are_none(box: list[Any], served: Served) -> None:
    status, said = served.post("/example", png(), box=box, label="a")
    assert status == 400
    assert "box" in said["error"]


def test_text_that_is_no_unicode_is_no_bug(served: Served) -> None:
    assert served.post("/detect", png(), prompts="\ud800")[0] in (200, 400)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({TOKEN: None}, 403),
        ({TOKEN: "wrong"}, 403),
        ({"Host": "evil.example"}, 403),  # a name that somebody else points here
        ({"Host": "127.0.0.1.evil.example:8765"}, 403),
        ({"Host": None}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "127.0.0.1:9000"}, 200),  # through ssh -L
        ({"Host": "[::1]:9000"}, 200),
        ({"Host": socket.gethostname().upper()}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),  # another program's page on this machine
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
    ids=str,
)
def test_only_the_own_page_is_answered(headers: dict[str, str | None], status: int, served: Served) -> None:
    assert served.send("GET", "/facts", **headers)[0] == status
    body = b'{"page": "p", "prompts": "red"}\n' + png()
    assert served.send("POST", "/detect", body, **headers)[0] == status


def test_the_page_needs_no_token_and_trusts_nobody(served: Served) -> None:
    status, headers, page = served.send("GET", "/?x=1", **{TOKEN: None})
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert served.send("GET", "/", Host="evil.example")[0] == 403
    assert served.demo.token.encode() not in page
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy
    for kind in (b"script", b"style"):
        (content,) = re.findall(rb"<%s>(.*?)</%s>" % (kind, kind), page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(content).digest()).decode() in policy
    assert not re.search(rb"https?://|//cdn|<link(?! rel=\"icon\")|@import|style=", page)
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_bodies_too_large_or_of_no_length(served: Served) -> None:
    size = str(server.MAX_BYTES + server.MAX_LINE + 1)
    status, headers, said = served.send("POST", "/detect", b"", Content_Length=size)
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(said)["error"].startswith("expected at most 24 MB, got 24")
    for length in (None, "-1", "1e3", "９"):
        with contextlib.suppress(UnicodeEncodeError):
            assert served.send("POST", "/detect", b"", Content_Length=length)[0] == 411


def test_places_that_are_none(served: Served) -> None:
    for path in (
        "/pictures/1",
        "/pictures/../server.py",
        "/pictures/%2e%2e/server.py",
        "/etc/passwd",
        "/facts/",
    ):
        assert served.send("GET", path)[0] == 404, path
    assert served.send("POST", "/facts", b"{}")[0] == 404


def test_pictures_and_facts(served: Served) -> None:
    facts = json.loads(served.send("GET", "/facts")[2])
    assert (facts["task"], facts["examples"], facts["pictures"], facts["prompts"]) == (
        "detect",
        True,
        ["scene.png"],
        "red",
    )
    assert (facts["threshold"], facts["nms_iou"], facts["side"]) == (0.1, 0.5, 64)
    assert served.send("GET", "/pictures/0")[2] == png()


def test_one_connection_serves_many_frames(served: Served) -> None:
    import http.client

    connection = http.client.HTTPConnection("localhost", served.demo.port, timeout=20)
    with contextlib.closing(connection):
        for prompts in ("red", " ,", "blue"):  # an error in between ends nothing
            line = json.dumps({"page": "p", "prompts": prompts}).encode()
            connection.request("POST", "/detect", line + b"\n" + png(), {TOKEN: served.demo.token})
            own = connection.sock
            answer = connection.getresponse()
            answer.read()
            assert answer.status == (400 if prompts == " ," else 200)
            assert connection.sock is own


def test_a_bug_is_told_and_the_server_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(served.demo.asking, "detect", lambda *_: 1 / 0)
        status, said = served.post("/detect", png(), prompts="red")
    assert (status, said) == (
        500,
        {"error": "this is a bug in edgeclip (ZeroDivisionError); see the terminal."},
    )
    assert "1 / 0" in capfd.readouterr().err
    with socket.create_connection(("localhost", served.demo.port)) as gone:  # leaves in the middle of a body
        gone.sendall(
            f"POST /detect HTTP/1.1\r\nHost: localhost\r\n{TOKEN}: {served.demo.token}\r\nContent-Length: 9\r\n\r\nabc".encode()
        )
    assert served.post("/detect", png(), prompts="red")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_model_that_only_classifies(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path / "toy")) as toy, edgeclip.load(tmp_path / "toy", threads=1) as model:
        facts = json.loads(toy.send("GET", "/facts")[2])
        assert (facts["task"], facts["examples"]) == ("classify", False)
        import io

        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(picture(1)).save(stream, "PNG")
        status, found = toy.post("/detect", stream.getvalue(), prompts="a cat, a dog")
        expected = model.classify(picture(1), ["a cat", "a dog"])
        assert status == 200
        assert found["label"] == expected.label
        assert [(row["label"], row["score"]) for row in found["classes"]] == [
            (label, pytest.approx(score, abs=1e-5)) for label, score in expected.ranked()
        ]
        assert "classifies whole pictures" in toy.post("/detect", prompts="a cat [an eye]")[1]["error"]
        assert "labels to choose from" in toy.post("/detect")[1]["error"]
        assert "finds nothing by example" in toy.post("/example", box=[0, 0, 9, 9], label="a")[1]["error"]


@pytest.mark.parametrize("head", ["labels", "prompts"])
def test_detectors_without_embeddings(head: str, tmp_path: Path) -> None:
    with serving(make_detector(tmp_path / "d", heads=[head])) as baked:
        assert json.loads(baked.send("GET", "/facts")[2])["examples"] is False
        _, found = baked.post("/detect", png(), prompts="" if head == "labels" else "red, green")
        assert {row["label"] for row in found["detections"]} == {"red", "green"}
        assert (
            baked.post("/detect", threshold=1, prompts="" if head == "labels" else "red")[1]["detections"]
            == []
        )


def test_serve_ends_by_ctrl_c_and_frees_its_port(tmp_path: Path) -> None:
    seen: list[Demo] = []

    def ready(demo: Demo) -> None:
        seen.append(demo)
        taken = pytest.raises(
            InputError, match=rf"127.0.0.1:{demo.port}: cannot listen there .* Pass another --port"
        )
        with taken:
            Demo(model, port=demo.port)
        demo.run = _interrupted  # type: ignore[method-assign]

    with edgeclip.load(make_detector(tmp_path / "d"), threads=1) as model:
        serve(model, port=0, ready=ready)
        (demo,) = seen
        with pytest.raises(InputError, match="the demo has ended"):
            demo.asking.example(server.Query("p", box=(0, 0, 1, 1), label="a"), b"x")
        Demo(model, port=demo.port).close()
        assert threading.active_count() < 20


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("::1", True)]
)
def test_addresses(host: str, local: bool, tmp_path: Path) -> None:
    with edgeclip.load(make_detector(tmp_path / "d"), threads=1) as model:
        try:
            demo = Demo(model, host, 0)
        except InputError as error:
            pytest.skip(f"this machine has no {host}: {error}")
        with contextlib.closing(demo):
            assert demo.is_local is local
            name = {"0.0.0.0": socket.gethostname(), "::1": "[::1]"}.get(host, host)
            assert demo.url == f"http://{name}:{demo.port}/#{demo.token}"
        with pytest.raises(InputError, match=r"no\.such\.host\.invalid:0: cannot listen there"):
            Demo(model, "no.such.host.invalid", 0)
