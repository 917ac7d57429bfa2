"""Random keys: one root key per purpose, derived from the seed of a run.

No key is part of the state: random numbers are a function of (seed, purpose, step), so that they are the same in a resumed
run and on other devices.
"""

import jax

# Never renumber: a resumed run would continue with different noise.
PURPOSES = {"init": 0, "train": 1, "sample": 2, "bound": 3, "flow": 4, "heldout_loss": 5, "condition": 6}


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root key of a purpose, one of PURPOSES; fold the step or the image index into it."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose])
