"""One training at a time: real processes for the kernel lock, and records of imaginary machines for the heartbeat."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.runtime import run_lock
from ddpm_jax.runtime.errors import ConflictError, FileAccessError
from ddpm_jax.runtime.run_lock import FILE, RunLock

FAST = {"beat_s": 0.05, "expire_s": 0.4}
HOLD = """
import pathlib, sys, time
from ddpm_jax.runtime.run_lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, child_environment):
    """A process that holds the lock of tmp_path."""
    line = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(line, env=child_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def no_flock(monkeypatch):
    """Simulates a network filesystem without locks."""

    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)


def record(**fields):
    return {"host": "node7", "pid": 4711, "since": "2026-01-01 00:00:00 UTC", "machine": "m", "token": "t", "beats": 1} | fields


def write(folder, entry):
    (folder / FILE).write_text(json.dumps(entry))


def test_the_error_of_a_second_process_names_the_holder(tmp_path, holder):
    before = (tmp_path / FILE).read_text()
    with pytest.raises(ConflictError) as error:
        RunLock(tmp_path)
    line = str(error.value)
    assert str(tmp_path) in line
    assert f"process {holder.pid} on {os.uname().nodename} (since 20" in line
    assert "\n" not in line
    assert (tmp_path / FILE).read_text() == before


def test_a_killed_holder_does_not_block_at_all(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / FILE).read_text())["pid"] == holder.pid  # it could not remove its record
    began = time.monotonic()
    with RunLock(tmp_path) as lock:
        lock.check()
    assert time.monotonic() - began < 1.0


def test_a_stopped_holder_keeps_it_on_its_machine(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(ConflictError, match=f"process {holder.pid} "):
        RunLock(tmp_path, **FAST)


def test_it_is_free_after_a_release(tmp_path):
    for _ in range(2):
        lock = RunLock(tmp_path)
        lock.release()
        lock.release()
    assert (tmp_path / FILE).read_bytes() == b""
    assert os.listdir(tmp_path) == [FILE]


def test_a_machine_without_heartbeat_loses_the_lock(tmp_path, log_lines):
    write(tmp_path, record())
    began = time.monotonic()
    with RunLock(tmp_path, **FAST):
        assert FAST["expire_s"] <= time.monotonic() - began < FAST["expire_s"] + 1.5
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    (line,) = log_lines
    assert "process 4711 on node7" in line
    assert run_lock.EXPIRE_S + 2 * run_lock.BEAT_S + 1 < 60  # the real waiting time


def test_a_kernel_lock_left_by_a_dead_machine_does_not_block(tmp_path):
    """Some network filesystems keep it; the record is of another machine without heartbeat."""
    write(tmp_path, record())
    left = os.open(tmp_path / FILE, os.O_RDWR)
    try:
        run_lock.fcntl.flock(left, run_lock.fcntl.LOCK_EX)
        began = time.monotonic()
        with RunLock(tmp_path, **FAST) as lock:
            lock.check()
            assert time.monotonic() - began < FAST["expire_s"] + 2 * FAST["beat_s"] + 1.5
    finally:
        os.close(left)


def test_a_machine_with_heartbeat_keeps_the_lock(tmp_path):
    write(tmp_path, record())
    done = threading.Event()

    def beat():
        beats = 1
        while not done.wait(0.1):
            beats += 1
            write(tmp_path, record(beats=beats))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConflictError, match="process 4711 on node7"):
            RunLock(tmp_path, **FAST)
    finally:
        done.set()
        thread.join()
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node7"


def test_a_release_is_seen_while_watching(tmp_path):
    write(tmp_path, record())
    threading.Timer(0.1, lambda: os.truncate(tmp_path / FILE, 0)).start()
    began = time.monotonic()
    with RunLock(tmp_path, beat_s=0.05, expire_s=20):
        assert time.monotonic() - began < 5


def test_without_kernel_locks_the_heartbeat_keeps_others_out(tmp_path, no_flock):
    with RunLock(tmp_path, **FAST) as first:
        with pytest.raises(ConflictError, match=f"process {os.getpid()} "):
            RunLock(tmp_path, **FAST)
        first.check()


def test_without_kernel_locks_one_of_two_wins(tmp_path, no_flock, monkeypatch):
    """Both find no holder and write: the last one wins, the other one fails."""
    results, found, both = [], [], threading.Barrier(2)
    read = run_lock._read

    def read_together(file):  # neither writes before both have read
        entry = read(file)
        if len(found) < 2:
            found.append(entry)
            both.wait()
        return entry

    monkeypatch.setattr(run_lock, "_read", read_together)

    def attempt():
        try:
            results.append(RunLock(tmp_path, beat_s=0.5, expire_s=1.0))
        except ConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None, None]
    held = [result for result in results if isinstance(result, RunLock)]
    assert len(held) == 1
    held[0].check()
    held[0].release()


def test_a_holder_that_lost_the_lock_does_not_save(tmp_path):
    """As after suspending the machine: another one has taken the workdir, and its record is kept."""
    with RunLock(tmp_path, **FAST) as lock:
        lock.check()
        write(tmp_path, record())
        with pytest.raises(ConflictError, match="another training has taken the workdir: process 4711 on node7"):
            lock.check()
        time.sleep(3 * FAST["beat_s"])
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node7"


def test_the_heartbeat_counts(tmp_path):
    with RunLock(tmp_path, **FAST):
        before = (tmp_path / FILE).read_text()
        deadline = time.monotonic() + 5
        while (tmp_path / FILE).read_text() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": "x"}'])
def test_a_file_without_a_record_does_not_block(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    began = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - began < 1.0


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(FileAccessError, match=r"cannot write .*training\.lock"):
        RunLock(tmp_path / "nowhere")
