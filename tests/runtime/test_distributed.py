"""Communication between the processes of a job: two real processes with two devices each."""

import os
import signal

import numpy as np
import pytest

from ddpm_jax.runtime import distributed, shared_workdir
from ddpm_jax.runtime.errors import ConflictError, InvalidArgumentError
from ddpm_jax.runtime.mesh import make_mesh


def test_two_processes_share_the_state_of_one(two, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    results, codes = two("""
config = {"seed": 1, "data": {"name": "digits", "data_dir": f"of process {me}"}}
def hold():
    with shared_workdir.hold_workdir(folder / "run") as check:
        check()
        with shared_workdir.hold_workdir(folder / "run"):
            pass
write(
    none=error_of(lambda: fails(None, None)),
    one=error_of(lambda: fails(None, errors.InvalidArgumentError("`x` is 7"))),
    other=error_of(lambda: fails(errors.FileAccessError("no\\nfile"), None)),
    both=error_of(lambda: fails(errors.ConflictError("mine 0"), errors.ConflictError("mine 1"))),
    defect=error_of(lambda: fails(None, KeyError("x"))),
    agree=[distributed.all_processes(True), distributed.all_processes(me == 0)],
    first=[distributed.broadcast_ints([3, 5, 8] if me == 0 else []), distributed.broadcast_ints([] if me == 0 else [1])],
    same=error_of(lambda: shared_workdir.check_same_config(config)),
    another=error_of(lambda: shared_workdir.check_same_config(config | {"seed": me})),
    shared=error_of(lambda: shared_workdir.check_shared(folder / "a")),
    apart=error_of(lambda: shared_workdir.check_shared(folder / "bc"[me])),
    prepared=error_of(lambda: shared_workdir.prepare_workdir(folder / "run", config, write=True)),
    held=error_of(hold),
    writes=distributed.is_primary_process(),
)
""")
    assert codes == [0, 0]
    zero, one = results
    assert zero["none"] is one["none"] is None
    assert zero["one"] == ["InvalidArgumentError", "process 1 stopped: `x` is 7"]
    assert one["one"] == ["InvalidArgumentError", "`x` is 7"]
    assert zero["other"] == ["FileAccessError", "no\nfile"]
    assert one["other"] == ["DistributedError", "process 0 stopped: no file"]
    assert [zero["both"][1], one["both"][1]] == ["mine 0", "mine 1"]
    assert zero["defect"] == ["DistributedError", "process 1 stopped: KeyError: 'x'"]
    assert one["defect"][0] == "KeyError"
    assert zero["agree"] == one["agree"] == [True, False]
    assert zero["first"] == one["first"] == [[3, 5, 8], []]
    assert zero["same"] is one["same"] is None
    assert zero["another"] == one["another"]
    assert zero["another"][0] == "InvalidArgumentError"
    assert "process 1 has a different config than process 0" in zero["another"][1]
    assert zero["shared"] is one["shared"] is None
    assert "use a `workdir` on a filesystem that all hosts share" in one["apart"][1]
    assert zero["apart"][1] == f"process 1 stopped: {one['apart'][1]}"
    assert [os.listdir(tmp_path / name) for name in "abc"] == [[], [], []]
    assert zero["prepared"] is one["prepared"] is None
    assert "is in use: process" in zero["held"][1]
    assert one["held"] == ["DistributedError", f"process 0 stopped: {zero['held'][1]}"]
    assert os.listdir(tmp_path / "run") == ["training.lock"]
    assert [zero["writes"], one["writes"]] == [True, False]


def test_a_long_wait_for_the_workdir_is_not_a_long_collective(two, tmp_path):
    """Gloo aborts a collective after waiting 30 s for a process; this test does not wait that long."""
    results, codes = two("""
shared_workdir.LOCK_POLL_S = 0.2
polls, all_agree = [], shared_workdir.all_processes
shared_workdir.all_processes = lambda mine: polls.append(mine) or all_agree(mine)
from ddpm_jax.runtime import run_lock
(folder / run_lock.FILE).write_text(json.dumps(dict(host="h", pid=1, since="then", machine="m", token="t")))
shared_workdir.lock = lambda folder: run_lock.lock(folder, beat_s=0.2, expire_s=1.5)
with shared_workdir.hold_workdir(folder) as check:
    check()
    held = json.loads((folder / run_lock.FILE).read_text())["pid"]
    check()  # so that both have read it before the release
write(polls=polls, held=held, me=os.getpid())
""")
    assert codes == [0, 0]
    zero, one = results
    assert zero["held"] == one["held"] == zero["me"]
    assert zero["polls"][-1]
    assert not any(zero["polls"][:-1])
    assert len(zero["polls"]) == len(one["polls"]) >= 4
    assert all(one["polls"])


@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_stops_all_in_the_same_step(two, victim, number):
    results, codes = two(f"""
work = jax.jit(lambda x: x.sum(), out_shardings=mesh.replicated(mesh.make_mesh()))
with GracefulShutdown(distributed.PreemptionSync(mesh.make_mesh(), max_steps=1)) as interrupt:
    for step in range(20):
        if interrupt.check():
            break
        if step == 5 and me == {victim}:
            os.kill(os.getpid(), {int(number)})
        work(jax.numpy.ones(3)).block_until_ready()
write(step=step, requested=interrupt._requested, agreed=interrupt.agreed)
sys.exit(interrupt.exit_code)
""")
    assert codes == [128 + number] * 2
    assert [row["step"] for row in results] == [7, 7]  # sent in step 6, read in step 7
    assert [row["agreed"] for row in results] == [number] * 2
    assert [row["requested"] for row in results] == [number if index == victim else None for index in range(2)]


def test_a_checkpoint_damaged_for_one_process_is_skipped_by_all(two, tmp_path):
    results, codes = two("""
from ddpm_jax.runtime import checkpoint
devices = mesh.make_mesh()
state = {"params": {"a": jax.jit(lambda: jax.numpy.arange(6.0), out_shardings=mesh.replicated(devices))()}}
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("ddpm_jax").addHandler(Lines())
with checkpoint.CheckpointManager(folder / "saved", max_to_keep=3) as checkpoints:
    again = [checkpoints.save(step, state, wait=True) for step in (1, 2, 3, 3)]
sound = checkpoint.check_sums
def damaged(file, parts):
    if (file.name, me) in (("3", 1), ("2", 0)):
        raise ValueError("a file is truncated")
    sound(file, parts)
checkpoint.check_sums = damaged
with checkpoint.CheckpointManager(folder / "saved", max_to_keep=3) as checkpoints:
    fields, step = checkpoints.restore(abstract)
    left = checkpoints.steps()
with checkpoint.CheckpointManager(folder / "nothing" / str(me), max_to_keep=1, read_only=True) as checkpoints:
    nothing = checkpoints.steps()
write(again=again, step=step, left=left, nothing=nothing, lines=lines, values=fields["params"]["a"].tolist())
""")
    assert codes == [0, 0]
    for row in results:
        assert row["again"] == [True, True, True, False]
        assert (row["step"], row["left"], row["nothing"]) == (1, [1], [])
        assert row["values"] == list(range(6))
        assert len(row["lines"]) == 2
    assert sorted(os.listdir(tmp_path / "saved")) == ["1", "damaged-2", "damaged-3"]
    assert "another process could not read it" in results[0]["lines"][1]
    assert "a file is truncated" in results[1]["lines"][1]


@pytest.mark.slow
def test_arrays_that_are_sharded_over_two_processes_are_gathered_by_both(two):
    results, codes = two("""
import numpy as np
from ddpm_jax.training import fsdp, load_params
flat = mesh.make_mesh()
host = {"a": np.arange(4096, dtype=np.float32).reshape(64, 64), "b": np.ones(3, np.float32)}
arrays = fsdp.put(mesh.training_mesh(flat, fsdp=4), host)
whole = fsdp.replicate(arrays, flat)
write(
    held=[arrays[name].addressable_shards[0].data.size for name in host],
    same=[bool((fsdp.to_host(tree[name]) == host[name]).all()) for tree in (arrays, whole) for name in host],
    replicated=[leaf.is_fully_replicated and leaf.sharding.mesh == flat for leaf in whole.values()],
    sha256=[load_params.params_sha256(tree) for tree in (arrays, whole)],
)
""")
    assert codes == [0, 0]
    for row in results:
        assert row["held"] == [1024, 3]
        assert row["same"] == [True] * 4
        assert all(row["replicated"])
        assert len({*row["sha256"], *results[0]["sha256"]}) == 1


def test_sigterm_still_ends_a_process_that_is_not_training(two):
    """With JAX's preemption service, both would survive the signal, which its handler only records."""
    results, codes = two("""
import time
write(ready=True)
if me == 0:  # the coordinator exits last: without it the other process would end anyway
    while not (folder / "1").exists():
        time.sleep(0.1)
    time.sleep(1)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
os._exit(3)
""")
    assert [row["ready"] for row in results] == [True, True]
    assert codes == [-signal.SIGTERM] * 2


def test_the_signal_is_read_one_call_later():
    vote = distributed.PreemptionSync(make_mesh(), max_steps=1)
    assert [vote(mine) for mine in (0, 15, 0, 2, 0, 0)] == [0, 0, 15, 0, 2, 0]


@pytest.mark.parametrize(("step_s", "interval"), [(0.001, 16), (0.1, 5), (0.25, 2), (2.0, 1), (40.0, 1)])
def test_short_steps_vote_less_often(monkeypatch, step_s, interval):
    """Twice a second, at least every 16 steps, and in each step that takes longer."""
    seconds, votes = [0.0], []
    monkeypatch.setattr(distributed.time, "monotonic", lambda: seconds[0])
    sync = distributed.PreemptionSync(make_mesh())
    make_rows = sync._make_rows
    monkeypatch.setattr(sync, "_make_rows", lambda mine, ms: votes.append(step) or make_rows(mine, ms))
    agreed = []
    for step in range(60):
        seconds[0] += step_s
        agreed.append(sync(15 if step == 30 else 0, vote_now=step == 30))
    assert agreed == [0] * 31 + [15] + [0] * 28  # a vote that is due now is read in the next step
    assert votes[:2] == [0, interval]
    assert set(np.diff([step for step in votes if step >= 30])) == {interval}


def test_one_process_does_not_communicate(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda *_: pytest.fail("a collective"))
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda *_: pytest.fail("a collective"))
    with distributed.raise_on_all_processes():
        pass
    with pytest.raises(KeyError), distributed.raise_on_all_processes():
        raise KeyError
    assert distributed.is_primary_process()
    assert [distributed.all_processes(True), distributed.all_processes(False)] == [True, False]
    assert distributed.broadcast_ints([4, 2]) == [4, 2]
    assert shared_workdir.prepare_workdir(tmp_path, {"seed": 0}, write=True) == tmp_path
    monkeypatch.setattr(distributed.threading, "Thread", lambda **_: pytest.fail("unexpected exit"))
    with pytest.raises(ValueError, match="Gloo"), distributed.distributed_main():
        raise ValueError("Gloo all-reduce failed")


def test_a_process_that_lost_a_peer_exits_with_an_error(two):
    """The first fails alone, the second loses it: both exit soon, not after JAX's timeout of five minutes."""
    results, codes = two("""
distributed.EXIT_GRACE_S = 0.5
@distributed.distributed_main()
def run():
    while True:
        if me == 0:
            raise errors.FileAccessError("disk full")
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
jax.devices()
error = error_of(run)
write(error=error)
if me == 0:
    sys.exit(1)
import time; time.sleep(60)  # as if blocked in a collective
""")
    assert codes == [1, 1]
    assert results[0]["error"] == ["FileAccessError", "disk full"]
    assert results[1]["error"][0] == "DistributedError"
    assert "another process of the job is gone (UNKNOWN: Gloo all-reduce failed" in results[1]["error"][1]


def test_broadcast_errors_fit_into_their_row():
    row = distributed._encode(InvalidArgumentError("é" * 5000))
    assert row.shape == (distributed.MESSAGE_BYTES,)
    assert row[0] == 2
    assert bytes(row[1:]).decode(errors="ignore").strip("\0").startswith("éé")
    assert distributed._encode(None)[0] == 0
    assert bytes(distributed._encode(ValueError("x"))[1:]).rstrip(b"\0") == b"ValueError: x"
    assert distributed._encode(ConflictError(""))[0] == 1
    assert np.count_nonzero(distributed._encode(None)) == 0
