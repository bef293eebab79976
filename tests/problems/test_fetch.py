"""The data directory, and fetching against a local server."""

from __future__ import annotations

import gzip
import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kftune.errors import DataMissingError, UnknownNameError
from kftune.problems import DATASETS, Dataset, DatasetStatus, default_data_dir, fetch, list_datasets
from kftune.problems.data.datasets import DataFile
from kftune.problems.data.directory import locate

CONTENTS = {"a.gz": b"first file" * 1000, "b.gz": b"second file" * 1000}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset of two small files beside the real ones; no test here goes to the internet."""
    files = tuple(DataFile(name, hashlib.md5(content).hexdigest()) for name, content in CONTENTS.items())
    toy = Dataset(name="toy", summary="two files", source="made up", files=files, urls=("http://127.0.0.1:9/x/",))
    monkeypatch.setitem(DATASETS, "toy", toy)
    monkeypatch.delenv("KFTUNE_DATA_URL_TOY", raising=False)
    return toy


class Server:
    """Serves ``files`` under any directory; a value that is a function writes its own answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requested: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                owner.requested.append(name)
                body = owner.files.get(name)
                if body is None:
                    self.send_error(404, "Not Found")
                elif callable(body):
                    body(self)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/data"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.files = {name: gzip.compress(content) for name, content in CONTENTS.items()}
    yield server
    server.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_fetches_everything_once(server: Server, tmp_path: Path) -> None:
    fetched = fetch("toy", tmp_path, base_url=server.url)
    assert fetched == (tmp_path / "toy" / "a.gz", tmp_path / "toy" / "b.gz")
    assert {path.name: gzip.decompress(path.read_bytes()) for path in fetched} == CONTENTS
    assert fetch("toy", tmp_path, base_url=server.url) == ()
    assert server.requested == ["a.gz", "b.gz"]
    assert names(tmp_path) == ["a.gz", "b.gz"]


def test_any_compression_will_do(server: Server, tmp_path: Path) -> None:
    server.files["a.gz"] = gzip.compress(CONTENTS["a.gz"], compresslevel=1, mtime=12345)
    server.files["b.gz"] = CONTENTS["b.gz"]
    assert len(fetch("toy", tmp_path, base_url=server.url + "/")) == 2


def test_address_from_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFTUNE_DATA_URL_TOY", server.url)
    assert len(fetch("toy", tmp_path)) == 2


def test_next_mirror_after_a_failure(
    server: Server, tmp_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = ("http://127.0.0.1:9/x/", server.url)  # nobody listens on the discard port
    monkeypatch.setitem(DATASETS, "toy", Dataset(**(vars(toy) | {"urls": urls})))
    assert len(fetch("toy", tmp_path)) == 2


def test_corrupt_or_absent_files_only(server: Server, tmp_path: Path) -> None:
    fetch("toy", tmp_path, base_url=server.url)
    (tmp_path / "toy" / "b.gz").write_bytes(b"\x1f\x8bgarbage")
    server.requested.clear()
    assert fetch("toy", tmp_path, base_url=server.url) == (tmp_path / "toy" / "b.gz",)
    assert server.requested == ["b.gz"]


def test_decompressed_file_counts_as_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a").write_bytes(CONTENTS["a.gz"])
    assert fetch("toy", tmp_path, base_url=server.url) == (tmp_path / "toy" / "b.gz",)


def test_an_archive_has_a_checksum_of_its_own_and_what_is_unpacked_is_not_trusted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(b"not a real archive")
    file = DataFile("a.tar.gz", hashlib.md5(packed).hexdigest(), members=("a/1.bin", "a/2.bin"))
    monkeypatch.setitem(DATASETS, "toy", Dataset(**(vars(DATASETS["toy"]) | {"files": (file,)})))
    for member in file.members:
        (tmp_path / "toy" / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy" / member).write_bytes(b"anything")
    status = {each.name: each for each in list_datasets(tmp_path)}["toy"]
    assert (status.present, status.size_bytes) == (True, 16)
    assert locate(DATASETS["toy"], tmp_path) == (tmp_path / "toy",)

    server.files["a.tar.gz"] = gzip.compress(b"not a real archive", compresslevel=1, mtime=12345)
    with pytest.raises(DataMissingError, match=r"checksum of the file is [0-9a-f]{32}, expected"):
        fetch("toy", tmp_path, base_url=server.url)
    server.files["a.tar.gz"] = packed
    assert fetch("toy", tmp_path, base_url=server.url) == (tmp_path / "toy" / "a.tar.gz",)
    assert locate(DATASETS["toy"], tmp_path) == (tmp_path / "toy" / "a.tar.gz",)
    assert fetch("toy", tmp_path, base_url=server.url) == ()

    (tmp_path / "toy" / "a.tar.gz").unlink()
    (tmp_path / "toy" / "a" / "2.bin").unlink()
    with pytest.raises(DataMissingError, match=r"toy: a.tar.gz not found in"):
        locate(DATASETS["toy"], tmp_path)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    """Announce more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"\x1f\x8b only this")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (gzip.compress(b"another file"), "checksum of the content is [0-9a-f]{32}, expected [0-9a-f]{32}"),
        (b"\x1f\x8bnot gzip", "not valid gzip"),
        (None, "404 Client Error: Not Found"),
        (cut_short, "IncompleteRead"),
    ],
    ids=["checksum", "gzip", "404", "cut short"],
)
def test_failures_leave_what_is_good_and_nothing_else(
    server: Server,
    tmp_path: Path,
    answer: bytes | Callable[[BaseHTTPRequestHandler], None] | None,
    why: str,
) -> None:
    if answer is None:
        del server.files["b.gz"]
    else:
        server.files["b.gz"] = answer
    with pytest.raises(DataMissingError, match=why) as caught:
        fetch("toy", tmp_path, base_url=server.url)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"toy: could not fetch b.gz ({server.url}/b.gz: ")
    assert names(tmp_path) == ["a.gz"]
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["a.gz"]


def test_a_bad_download_does_not_replace_the_old_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.gz").write_bytes(b"old")
    server.files["a.gz"] = gzip.compress(b"wrong")
    with pytest.raises(DataMissingError):
        fetch("toy", tmp_path, base_url=server.url)
    assert (tmp_path / "toy" / "a.gz").read_bytes() == b"old"


def test_interrupt_leaves_no_partial_file(server: Server, tmp_path: Path) -> None:
    half_sent, give_up = threading.Event(), threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "200000")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b" + bytes(100_000))
        half_sent.set()
        give_up.wait(60)

    server.files["train-images-idx3-ubyte.gz"] = stall
    code = "import sys; from pathlib import Path; from kftune.problems import fetch;"
    code += "fetch('mnist', Path(sys.argv[1]), base_url=sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.url], stderr=subprocess.DEVNULL)
    try:
        assert half_sent.wait(60)
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.rglob("*.gz")):  # the half has reached the disk
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        give_up.set()
        process.kill()
        process.wait()
    assert list((tmp_path / "mnist").iterdir()) == []


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"could not fetch a.gz .*ConnectionError"):
        fetch("toy", tmp_path)


@pytest.mark.parametrize("address", ["ftp://host/x", "host/x", "file:///tmp"])
def test_address_must_be_http(tmp_path: Path, address: str) -> None:
    with pytest.raises(DataMissingError, match="must start with http"):
        fetch("toy", tmp_path, base_url=address)


def test_nowhere_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataMissingError, match=r"cannot write to .*file/toy: Not a directory"):
        fetch("toy", tmp_path / "file")


def test_unknown_dataset_has_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        fetch("minst", tmp_path)


def test_progress_is_drawn_on_standard_error(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("toy", tmp_path, base_url=server.url, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a.gz" in captured.err
    assert "b.gz" in captured.err


def test_quiet_otherwise(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch("toy", tmp_path, base_url=server.url)
    assert capfd.readouterr() == ("", "")


def test_listing(server: Server, tmp_path: Path) -> None:
    def by_name() -> dict[str, DatasetStatus]:
        return {status.name: status for status in list_datasets(tmp_path)}

    before = by_name()
    assert before.keys() == {"mnist", "fashion_mnist", "cifar10", "toy"}
    assert not before["toy"].present
    assert before["toy"].missing == ("a.gz", "b.gz")
    fetch("toy", tmp_path, base_url=server.url)
    after = by_name()["toy"]
    assert after.present
    assert after.directory == tmp_path / "toy"
    assert after.size_bytes == sum((tmp_path / "toy" / name).stat().st_size for name in CONTENTS)


def test_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFTUNE_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.setenv("KFTUNE_DATA", "~/data")
    assert default_data_dir() == Path.home() / "data"
    monkeypatch.delenv("KFTUNE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir() == tmp_path / "cache" / "kftune" / "data"


def test_the_real_mnist_needs_no_fetching(mnist_dir: Path) -> None:
    assert fetch("mnist", mnist_dir, base_url="http://127.0.0.1:9/") == ()
