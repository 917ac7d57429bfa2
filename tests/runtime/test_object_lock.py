"""The lock of a workdir in a bucket."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.runtime import run_lock, storage
from ddpm_jax.runtime.errors import ConflictError, FileAccessError

FAST = {"beat_s": 0.1, "expire_s": 0.5}
HOLDER = """
import pathlib, sys, time
from ddpm_jax.runtime import run_lock, storage
lock = run_lock.lock(storage.path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(bucket):
    return storage.path(bucket)


def numbers(folder):
    return [file.name for file in (folder / run_lock.OBJECTS).iterdir()]


def stopped(lock):
    """Ends the heartbeat of a lock, as if its process were stopped on another machine."""
    lock._stop.set()
    lock._thread.join()
    lock._stop.clear()
    lock._close_local()


def test_a_second_training_is_refused_and_reads_who_trains(folder):
    with run_lock.lock(folder, **FAST) as lock:
        lock.check()
        with pytest.raises(ConflictError, match=f"gs://bucket.* is in use: process {os.getpid()} on .* is training in it"):
            run_lock.lock(folder, **FAST)
        lock.check()


def test_a_released_lock_is_taken_at_once(folder):
    for number in ("00000001", "00000002", "00000003"):
        started = time.monotonic()
        lock = run_lock.lock(folder)
        assert time.monotonic() - started < 3
        assert numbers(folder) == [number]
        lock.release()
        lock.release()


def test_a_lock_without_heartbeat_is_taken_and_its_holder_ends_before_it_saves(folder, log_lines):
    first = run_lock.lock(folder, **FAST)
    stopped(first)
    started = time.monotonic()
    with run_lock.lock(folder, **FAST) as second:
        assert time.monotonic() - started > FAST["expire_s"]
        assert "waiting up to 0 s" in log_lines[-1] or "waiting up to 1 s" in log_lines[-1]
        with pytest.raises(ConflictError, match="another training has taken the workdir: process"):
            first.check()
        second.check()
        first.release()  # does not free the lock of the other
        with pytest.raises(ConflictError, match="is in use"):
            run_lock.lock(folder, **FAST)
    with run_lock.lock(folder, **FAST):
        pass


def test_the_heartbeat_of_a_holder_that_has_lost_the_workdir_ends(folder):
    first = run_lock.lock(folder, **FAST)
    storage.create(folder / run_lock.OBJECTS / "00000002", first._content())
    first._thread.join(5)
    assert not first._thread.is_alive()
    with pytest.raises(ConflictError, match="has taken the workdir"):
        first.check()
    first.release()


def test_a_passing_failure_of_the_network_is_no_loss(folder, emulator):
    with run_lock.lock(folder, beat_s=0.05, expire_s=2.0) as lock:
        with emulator.failing(403):
            time.sleep(0.3)
            lock.check()
            lock._beaten -= 1.5
            with pytest.raises(FileAccessError, match="cannot read gs://"):
                lock.check()
        deadline = time.monotonic() + 5
        while time.monotonic() - lock._beaten > 0.5 and time.monotonic() < deadline:
            time.sleep(0.02)
        lock.check()


def test_of_two_that_take_an_expired_lock_one_gets_it(folder):
    stopped(run_lock.lock(folder, **FAST))
    results = []

    def take():
        try:
            results.append(run_lock.lock(folder, **FAST))
        except ConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [result for result in results if not isinstance(result, ConflictError)]
    assert len(held) == 1
    assert len(results) == 4
    held[0].release()


def test_a_damaged_object_is_no_holder(folder):
    storage.create(folder / run_lock.OBJECTS / "00000007", b"{")
    with run_lock.lock(folder, **FAST):
        assert numbers(folder) == ["00000008"]


def test_a_read_only_bucket_is_an_immediate_error(folder, emulator):
    with emulator.failing(403, "POST"), pytest.raises(FileAccessError, match=r"cannot write gs://.*: no permission"):
        run_lock.lock(folder, **FAST)


@pytest.mark.slow
def test_the_lock_of_a_killed_process_of_this_machine_is_taken_at_once(folder, child_environment):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=child_environment(), stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match=f"process {holder.pid} on"):
            run_lock.lock(folder)
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with run_lock.lock(folder):
            assert time.monotonic() - started < 3
            record = json.loads((folder / run_lock.OBJECTS / "00000002").read_bytes())
            assert record["pid"] == os.getpid()
