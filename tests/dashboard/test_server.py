"""The live page: a real server in a process of its own, a real browser, and a study that grows."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest

from kftune.dashboard.server import Address, bind, is_local
from kftune.errors import UsageError
from kftune.storage.repository import Repository
from tests.dashboard.conftest import Watched, wait_until
from tests.dashboard.factory import OPTIMIZERS, grow, make_database
from tests.processes.database import connected
from tests.processes.warm import WarmPopen

Open = Callable[..., Watched]
FEW = {name: OPTIMIZERS[name] for name in ("sgd", "kfac")}


class Served(NamedTuple):
    """A server and what it serves."""

    process: subprocess.Popen[str]
    url: str
    port: int
    database: Path


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[Served]:
    """``kftune serve`` on a study that is not complete."""
    database = directory / "running.db"
    make_database(f"sqlite:///{database}", problems=("digits_mlp",), optimizers=FEW, n_trials=9, n_made=2, n_startup=5)
    command = [sys.executable, "-m", "kftune", "serve", str(database), "--port", "0", "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with WarmPopen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=directory) as process:
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline()).strip() != "}":
            assert line, process.stderr.read() if process.stderr else ""
            lines.append(line)
        url = json.loads("".join([*lines, "}"]))["url"]
        yield Served(process, url, int(url.rstrip("/").rpartition(":")[2]), database)
        process.kill()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """See :func:`serving`."""
    with serving(tmp_path) as served:
        yield served


def ask(served: Served, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_a_study_that_is_running_is_seen_to_grow(open_page: Open, served: Served) -> None:
    page = open_page(served.url).page
    assert page.locator(".state").inner_text() == "4 of 18 trials"
    legend = page.locator(".legend").get_by_role("button", name="sgd")
    legend.click()  # what the reader chose stays as it is
    slider = page.locator(".slider input").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    wait_until(page, "document.querySelector('.slider output').textContent.startsWith('seen at 58.5 s')")
    before = page.locator(".slider output").first.inner_text()
    page.locator(".sorted-losses").first.scroll_into_view_if_needed()
    points = "document.querySelectorAll('.sorted-losses .plot .trace .point').length"
    wait_until(page, f"{points} === 2")
    grow(f"sqlite:///{served.database}", optimizers=FEW)
    wait_until(page, "document.querySelector('.state').textContent === '6 of 18 trials'", seconds=60)
    wait_until(page, f"{points} === 3", seconds=60)  # of kfac alone
    assert legend.get_attribute("aria-pressed") == "false"
    page.locator(".slider").first.scroll_into_view_if_needed()
    wait_until(page, f"document.querySelector('.slider output').textContent === {before!r}")
    with connected(served.database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_it_answers_get_to_its_own_name_and_nothing_else(served: Served) -> None:
    own = f"127.0.0.1:{served.port}"
    for path in ("/", "/main", "/revision"):
        assert ask(served, "GET", path).status == 200
        assert ask(served, "HEAD", path).status == 200
    # At the near end of a tunnel (ssh -L 9000:localhost:8017) the name is this machine's, the port another one's.
    for name in (f"localhost:{served.port}", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", "LocalHost"):
        assert ask(served, "GET", "/", Host=name).status == 200, name
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert ask(served, method, "/").status == 405, method
    foreign = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:1:2", "localhost:x")
    for name in (*foreign, f"evil.example:{served.port}", own + ".evil.example", f"192.0.2.1:{served.port}"):
        assert ask(served, "GET", "/", Host=name).status == 421, name
    for path in ("/../../etc/passwd", "/static/x", "/main/", "/docs", "/console", "/?__debugger__=yes&cmd=resource"):
        assert ask(served, "GET", path).status in (200, 404, 307), path
    assert ask(served, "GET", "/../../etc/passwd").status == 404
    answer = ask(served, "GET", "/")
    policy = answer.getheader("content-security-policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert answer.getheader("server") is None
    assert answer.getheader("access-control-allow-origin") is None


def test_it_goes_by_the_name_it_was_given(tmp_path: Path) -> None:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except socket.gaierror:
        pytest.skip("this machine does not know its own name")
    with serving(tmp_path, "--host", name) as served:
        assert served.url == f"http://{name}:{served.port}/"
        for host in (f"{name}:{served.port}", f"{address}:{served.port}"):
            connection = http.client.HTTPConnection(address, served.port, timeout=60)
            connection.request("GET", "/revision", headers={"Host": host})
            assert connection.getresponse().status == 200, host
            connection.close()


def test_a_refresh_leaves_the_reader_where_they_are(open_page: Open, served: Served) -> None:
    page = open_page(served.url, width=360).page
    stands = "document.querySelector('.sorted-losses .plot').layout.xaxis.range.map(Math.round).join()"
    plot = page.locator(".sorted-losses .plot").first
    plot.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.sorted-losses .plot').matches('.drawn')")
    whole = page.evaluate(stands)
    box = plot.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    wait_until(page, f"{stands} !== {whole!r}")
    zoomed = page.evaluate(stands)
    table = page.locator(".budget .slider .scroll").first
    table.scroll_into_view_if_needed()
    wait_until(page, "((box) => box.scrollWidth > box.clientWidth + 40)(document.querySelector('.budget .scroll'))")
    table.evaluate("(box) => { box.scrollLeft = 40; }")
    page.locator(".budget .slider input").first.focus()
    page.evaluate("window.marked = [...document.querySelectorAll('.sorted-losses, .budget')]")
    grow(f"sqlite:///{served.database}", optimizers=FEW)
    wait_until(page, "window.marked.every((part) => !part.isConnected)", seconds=60)
    assert page.evaluate("document.activeElement.matches('.budget .slider input')")
    assert page.evaluate("document.querySelector('.budget .scroll').scrollLeft") == 40
    plot.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.sorted-losses .plot').matches('.drawn')")
    assert page.evaluate(stands) == zoomed
    legend = page.locator(".legend").get_by_role("button", name="sgd")
    legend.click()  # draws it again
    wait_until(page, "document.querySelector('.sorted-losses .plot').data.some((trace) => trace.visible === false)")
    assert page.evaluate(stands) == zoomed
    plot.dblclick()
    wait_until(page, f"{stands} === {whole!r}")


def test_a_part_in_use_waits_until_it_is_let_go(open_page: Open, served: Served) -> None:
    page = open_page(served.url).page
    slider = page.locator(".budget .slider input").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    page.evaluate("window.marked = document.querySelector('.budget')")
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    grow(f"sqlite:///{served.database}", optimizers=FEW)
    wait_until(page, "document.querySelector('.state').textContent === '6 of 18 trials'", seconds=60)
    assert page.evaluate("window.marked.isConnected")
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2, steps=5)
    chosen = page.locator(".budget output").first.inner_text()
    page.mouse.up()
    wait_until(page, "!window.marked.isConnected", seconds=60)
    page.locator(".budget .slider").first.scroll_into_view_if_needed()
    wait_until(page, f"document.querySelector('.budget output').textContent === {chosen!r}")


def test_text_that_is_selected_stays_so_until_it_is_let_go(open_page: Open, served: Served) -> None:
    page = open_page(served.url).page
    page.evaluate("window.marked = document.querySelector('.budget')")
    page.evaluate("getSelection().selectAllChildren(window.marked.querySelector('h3, h2, p'))")
    selected = page.evaluate("getSelection().toString()")
    grow(f"sqlite:///{served.database}", optimizers=FEW)
    wait_until(page, "document.querySelector('.state').textContent === '6 of 18 trials'", seconds=60)
    assert page.evaluate("window.marked.isConnected")
    assert page.evaluate("getSelection().toString()") == selected != ""
    page.evaluate("getSelection().empty()")
    wait_until(page, "!window.marked.isConnected", seconds=60)


def test_it_changes_nothing_and_ends_with_ctrl_c(served: Served) -> None:
    size = served.database.stat().st_size
    first = ask(served, "GET", "/revision")
    assert first.status == 200
    ask(served, "GET", "/")
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=30)
    assert (served.process.returncode, out, err) == (0, "", "")
    assert served.database.stat().st_size == size
    assert not served.database.with_name("running.db-wal").exists()


def test_a_port_in_use_is_one_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; "):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.7:0"):
        bind("203.0.113.7", 0)


def test_which_addresses_are_this_machine_s_alone() -> None:
    assert [is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "192.0.2.1", "example.com")] == [False] * 4
    assert Address("192.0.2.1", 8017).names == {"192.0.2.1:8017"}
    assert Address("Node17", 80).names == {"node17:80", "node17"}
    assert f"{socket.gethostname()}:8017".lower() in Address("0.0.0.0", 8017).names
    assert Address("::1", 80).url == "http://[::1]:80/"
    assert "[::1]" in Address("::1", 80).names


def test_a_revision_changes_with_what_is_stored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    make_database(url, problems=("digits_mlp",), optimizers=FEW, n_trials=9, n_made=1)
    with Repository.open(url, read_only=True) as repository:
        first = repository.revision()
        assert repository.revision() == first
        grow(url, optimizers=FEW)
        assert repository.revision() != first


def test_optuna_dashboard_reads_a_database_that_is_written_to(tmp_path: Path) -> None:
    database = tmp_path / "running.db"
    url = f"sqlite:///{database}"
    make_database(url, problems=("digits_mlp",), optimizers=FEW, n_trials=9, n_made=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    executable = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(executable), "--host", "127.0.0.1", "--port", str(port), url]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=tmp_path) as process:
        try:
            summaries = _studies(port, process)
            assert {study["study_name"] for study in summaries} == {
                "thesis_cpu/digits_mlp/sgd",
                "thesis_cpu/digits_mlp/kfac",
            }
            shown = [_n_trials(port, summaries[0]["study_id"])]
            for seed in range(3):
                grow(url, optimizers=FEW, seed=seed)
                shown.append(_n_trials(port, summaries[0]["study_id"]))
            assert shown == sorted(shown)
            while shown[-1] < 6:  # it keeps what it has read for ten seconds
                assert process.poll() is None
                signal.sigtimedwait([], 0.5)
                shown.append(_n_trials(port, summaries[0]["study_id"]))
            with urlopen(f"http://127.0.0.1:{port}/dashboard", timeout=60) as answer:
                assert b"<html" in answer.read().lower()
        finally:
            process.terminate()
    with Repository.open(url, read_only=True) as repository:
        # Two made, one left running, three more.
        assert [len(repository.trials(record.study)) for record in repository.studies()] == [6, 6]
    with connected(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _n_trials(port: int, study_id: object) -> int:
    """How many trials of a study optuna-dashboard knows."""
    with urlopen(f"http://127.0.0.1:{port}/api/studies/{study_id}?after=0", timeout=60) as answer:
        return len(json.load(answer)["trials"])


def _studies(port: int, process: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    """The study summaries, as soon as the server answers."""
    for _ in range(600):
        assert process.poll() is None
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=60) as answer:
                found: list[dict[str, object]] = json.load(answer)["study_summaries"]
                return found
        except OSError:
            signal.sigtimedwait([], 0.1)
    raise AssertionError("optuna-dashboard does not answer")
