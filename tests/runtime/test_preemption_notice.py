"""The notice of a preemption, from a server that answers as that of Google Cloud."""

import http.server
import signal
import threading
import time

import pytest

from ddpm_jax.runtime import preemption_notice
from ddpm_jax.runtime.preemption import GracefulShutdown


class MetadataServer(http.server.ThreadingHTTPServer):
    """Answers instance/preempted: at once, or after `preempt` if the request waits for a change."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.preempted, self.requests = threading.Event(), []
        self.fails, self.waits, self.garbage = 0, True, b""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if server.garbage:
            self.wfile.write(server.garbage)
            return
        if server.fails or self.headers["Metadata-Flavor"] != "Google":
            server.fails -= 1
            self.send_error(503)
            return
        if server.waits and "wait_for_change=true" in self.path:
            server.preempted.wait(0.05)  # that of Google waits for a minute
        body = b"TRUE" if server.preempted.is_set() else b"FALSE"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = MetadataServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(preemption_notice, "RETRY_S", 0.01)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fails", [0, 2])
def test_the_notice_is_given_once(server, fails, log_lines):
    server.fails, given = fails, threading.Semaphore(0)
    with preemption_notice.PreemptionNotice(given.release):
        assert not given.acquire(timeout=0.2)
        server.preempted.set()
        assert given.acquire(timeout=10)
        assert not given.acquire(timeout=0.2)
    assert server.requests[0] == "/computeMetadata/v1/instance/preempted"
    assert server.requests[-1].endswith("?wait_for_change=true&timeout_sec=60")
    assert [line for line in log_lines if "announces that this machine is preempted" in line] == log_lines[-1:]


def test_a_machine_that_is_preempted_already(server):
    server.preempted.set()
    given = threading.Event()
    with preemption_notice.PreemptionNotice(given.set):
        assert given.wait(10)


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe nonsense\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nTR"])
def test_a_server_that_fails_is_given_up(server, garbage, log_lines):
    server.fails, server.garbage = 1000, garbage
    with preemption_notice.PreemptionNotice(lambda: pytest.fail("no notice")):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "preemption-notice")
        thread.join(10)
    assert not thread.is_alive()
    assert len(server.requests) == preemption_notice.MAX_FAILURES
    (line,) = log_lines
    assert "does not answer" in line
    assert "\n" not in line


def test_a_server_that_does_not_wait_is_asked_at_intervals(server, monkeypatch):
    server.waits = False
    monkeypatch.setattr(preemption_notice, "RETRY_S", 10.0)
    with preemption_notice.PreemptionNotice(lambda: pytest.fail("no notice")):
        time.sleep(0.3)
        assert len(server.requests) == 2


@pytest.mark.parametrize("host", ["no host at all", "127.0.0.1:99999"])
def test_a_name_that_is_no_host(monkeypatch, host, log_lines):
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    monkeypatch.setattr(preemption_notice, "RETRY_S", 0.0)
    with preemption_notice.PreemptionNotice(lambda: pytest.fail("no notice")):
        for thread in threading.enumerate():
            if thread.name == "preemption-notice":
                thread.join(10)
    assert len(log_lines) == 1


def test_other_machines_are_not_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    product = tmp_path / "product_name"
    monkeypatch.setattr(preemption_notice, "_PRODUCT", product)
    assert preemption_notice.metadata_host() == ""
    product.write_text("Google Compute Engine\n")
    assert preemption_notice.metadata_host() == "metadata.google.internal"
    product.write_text("Standard PC\n")
    with preemption_notice.PreemptionNotice(lambda: None):
        assert not any(thread.name == "preemption-notice" for thread in threading.enumerate())


@pytest.mark.parametrize("first", [0, signal.SIGINT])
def test_it_stops_a_training_as_sigterm_does(server, first):
    with GracefulShutdown() as shutdown:
        assert shutdown.check() is None
        if first:
            signal.raise_signal(first)
        server.preempted.set()
        for thread in threading.enumerate():
            if thread.name == "preemption-notice":
                thread.join(10)
        assert shutdown.check() == (first or signal.SIGTERM)
