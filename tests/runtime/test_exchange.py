"""Arrays exchanged between two real processes: the same result on both, to the bit, also for float64 and empty arrays."""

import numpy as np
import pytest

from ddpm_jax.runtime import exchange


def test_one_process():
    rows = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(exchange.concatenate(rows), rows)
    np.testing.assert_array_equal(exchange.total(rows), rows)
    assert exchange.total(rows).dtype == np.float64
    assert exchange.concatenate(np.zeros((0, 0))).shape == (0, 0)
    assert exchange.own_part(7) == range(7)


@pytest.mark.slow
def test_two_processes(two):
    results, codes = two("""
import numpy as np
from ddpm_jax.runtime import exchange
exchange.CHUNK_BYTES = 64
random = np.random.default_rng(me)
rows = random.normal(size=(5, 3)) if me == 0 else random.normal(size=(9, 3))
mixed = exchange.gather(np.arange(3, dtype=np.uint8) if me == 0 else np.float64(0.1))
write(
    parts=[list(exchange.own_part(count)) for count in (0, 1, 7)],
    rows=exchange.concatenate(rows).tobytes().hex(),
    only_one=exchange.concatenate(np.zeros((0, 0)) if me == 0 else rows).tobytes().hex(),
    none=list(exchange.concatenate(np.zeros((0, 0))).shape),
    total=exchange.total(rows[:4]).tobytes().hex(),
    mixed=[str(array.dtype) for array in mixed] + [array.tolist() for array in mixed],
)
""")
    assert codes == [0, 0]
    zero, one = results
    assert zero["parts"] == [[], [], [0, 1, 2]]
    assert one["parts"] == [[], [0], [3, 4, 5, 6]]
    first, second = (np.random.default_rng(me).normal(size=size) for me, size in enumerate([(5, 3), (9, 3)]))
    for found in results:
        assert found["rows"] == np.concatenate([first, second]).tobytes().hex()
        assert found["only_one"] == second.tobytes().hex()
        assert found["none"] == [0, 0]
        assert found["total"] == (first[:4] + second[:4]).tobytes().hex()
        assert found["mixed"] == ["uint8", "float64", [0, 1, 2], 0.1]
