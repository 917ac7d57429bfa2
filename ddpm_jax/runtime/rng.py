"""Where every random number comes from: a root key per purpose, made from the one seed of a run.

Nothing carries a key along: a draw is a function of (seed, purpose, step), so that a resumed run, or one on other
devices, draws the same numbers.
"""

import jax

# Never renumber: a run resumed with other numbers would go on with other noise.
PURPOSES = {"init": 0, "train": 1, "sample": 2, "bound": 3, "flow": 4}


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root key of a purpose, one of PURPOSES; fold the step or the image index into it."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose])
