"""Optimizers by name, with optax. Each is made for learning rate 1: the training step multiplies its updates by the rate."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.runtime import custom_parts, registry
from ddpm_jax.training import param_patterns

MIN_MUON_CHANNELS = 8  # the layers next to the images have fewer; Muon's author leaves first and last layers to Adam


def adam(learning_rate: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam, the optimizer of Ho et al. Kingma and Ba 1412.6980, algorithm 1.

    Args:
      learning_rate: factor on the updates.
      b1, b2: decay of the first and second moment, in [0, 1).
      eps: added to the root of the second moment, >= 0.

    Raises:
      ValueError: an option is out of range.
    """
    _check_decays("adam", b1=b1, b2=b2)
    _check_not_negative("adam", eps=eps)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def adamw(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay of the kernels. Loshchilov and Hutter 1711.05101.

    Args:
      learning_rate, b1, b2, eps: as for `adam`.
      weight_decay: >= 0; a step subtracts learning rate x weight_decay x parameter, as PyTorch does, from the parameters
        that `is_kernel` selects.

    Raises:
      ValueError: an option is out of range.
    """
    _check_decays("adamw", b1=b1, b2=b2)
    _check_not_negative("adamw", eps=eps, weight_decay=weight_decay)
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=kernel_mask)


def lion(learning_rate: float, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.1) -> optax.GradientTransformation:
    """Lion: the sign of a momentum. Chen et al. 2302.06675, who use a 3 to 10 times smaller rate than AdamW's.

    Args:
      learning_rate: factor on the updates.
      b1, b2: decay of the momentum in the update and of the stored momentum, in [0, 1).
      weight_decay: >= 0, as for `adamw`; 3 to 10 times larger than AdamW's, as the rate is smaller.

    Raises:
      ValueError: an option is out of range.
    """
    _check_decays("lion", b1=b1, b2=b2)
    _check_not_negative("lion", weight_decay=weight_decay)
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=kernel_mask)


def muon(
    learning_rate: float,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    consistent_rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Muon for kernels, Adam for the other parameters. Jordan et al., github.com/KellerJordan/Muon.

    The kernels are those that `muon_dimensions` selects. A kernel of a convolution, [h, w, in, out], is orthogonalized as
    the matrix [h w in, out].

    Args:
      learning_rate: factor on the updates.
      beta: decay of the momentum, in [0, 1).
      nesterov: use Nesterov's momentum in Muon and in Adam.
      ns_steps: number of Newton-Schulz iterations, >= 1.
      consistent_rms: root mean square of the updates, > 0; 0.2 is about Adam's (Liu et al. 2502.16982), so that both
        parts have one learning rate.
      b1, b2, eps: options of Adam, as for `adam`; eps is also Muon's.
      weight_decay: >= 0, as for `adamw`, of Muon's kernels.

    Raises:
      ValueError: an option is out of range.
    """
    _check_decays("muon", beta=beta, b1=b1, b2=b2)
    _check_not_negative("muon", eps=eps, weight_decay=weight_decay)
    if consistent_rms <= 0:
        raise ValueError(f"`consistent_rms` is {consistent_rms}, out of muon's range: it must be above 0")
    if ns_steps < 1:
        raise ValueError(f"`ns_steps` is {ns_steps}, out of muon's range: it must be 1 or more")
    return optax.contrib.muon(
        learning_rate,
        ns_steps=ns_steps,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        nesterov=nesterov,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=muon_dimensions,
        consistent_rms=consistent_rms,
    )


def sgd(learning_rate: float, *, momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradient descent with momentum. Sutskever et al., On the importance of initialization and momentum, ICML 2013.

    Args:
      learning_rate: factor on the updates.
      momentum: decay of the accumulated gradient, in [0, 1); 0 for none.
      nesterov: use Nesterov's momentum.

    Raises:
      ValueError: momentum is out of range.
    """
    _check_decays("sgd", momentum=momentum)
    return optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)


# name -> (learning rate, **options) -> optax.GradientTransformation
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
    "sgd": sgd,
}


def make_optimizer(
    name: str,
    /,
    *,
    clip_norm: float = 0.0,
    skip_nonfinite: int = 0,
    frozen: Sequence[str] = (),
    norm_fn: Callable[[Any], jax.Array] = optax.tree.norm,
    **options: Any,
) -> optax.GradientTransformation:
    """The optimizer called `name` for learning rate 1, after clipping.

    The structure of its state depends on the name and on `frozen` only, not on the numbers, so that they may change when a run
    is resumed.

    Args:
      name: a key of OPTIMIZERS, or module:function for a function `(learning_rate, **options)` -> GradientTransformation,
        whose updates must be proportional to the learning rate.
      clip_norm: maximum global norm of the gradient; 0 for no clipping.
      skip_nonfinite: number of consecutive gradients that are ignored, with updates 0, if they are not finite; 0 for none.
      frozen: patterns of the parameters (`param_patterns`) that have no state, updates 0 and no part in the norm of the
        gradient.
      norm_fn: the global norm of a pytree, for the clipping.
      options: options of the optimizer, such as b1, b2 and eps of adam.

    Raises:
      ValueError: unknown name or option, an option out of range, or a function of the user's own that makes no optimizer.
    """
    clip = _clip_by_global_norm(clip_norm, norm_fn) if clip_norm else optax.identity()  # both have an empty state
    optimizer = registry.make(name, OPTIMIZERS, "optimizer", 1.0, options=options)
    custom_parts.check_type(f"the optimizer {name}", optimizer, optax.GradientTransformation)
    chain = optax.chain(clip, optimizer)
    if frozen:
        chain = optax.chain(optax.masked(chain, _trained(frozen)), optax.masked(optax.set_to_zero(), _frozen(frozen)))
    skipping = optax.apply_if_finite(chain, max_consecutive_errors=skip_nonfinite)
    if skip_nonfinite:
        return skipping

    def update(grads: Any, state: optax.ApplyIfFiniteState, params: Any = None) -> tuple[Any, optax.ApplyIfFiniteState]:
        updates, inner = chain.update(grads, state.inner_state, params)
        return updates, state._replace(notfinite_count=jnp.zeros_like(state.notfinite_count), inner_state=inner)

    return optax.GradientTransformation(skipping.init, update)


def _clip_by_global_norm(max_norm: float, norm_fn: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with the same arithmetic and a `norm_fn` of choice."""

    def update(grads: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        norm = norm_fn(grads)
        unclipped = norm < max_norm
        return jax.tree.map(lambda grad: jax.lax.select(unclipped, grad, (grad / norm) * max_norm), grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def check_custom_optimizer(name: str, optimizer: optax.GradientTransformation, params: Any) -> None:
    """Checks what an optimizer of the user's own returns.

    Args:
      name: for the errors.
      optimizer: made by `make_optimizer`.
      params: the parameters, or their shapes and types.

    Raises:
      InvalidArgumentError: it fails, or returns updates unlike the parameters or a state unlike that of its init.
    """
    part = f"the optimizer {name}"
    state = custom_parts.trace(f"init of {part}", optimizer.init, params)
    found = custom_parts.trace(f"update of {part}", optimizer.update, params, state, params)
    for value, required, what in zip(found, (params, state), ("an update of each parameter", "its state"), strict=True):
        custom_parts.check_result(f"update of {part}", value, required, what)


def _frozen(patterns: Sequence[str]) -> Callable[[Any], Any]:
    return lambda params: param_patterns.match_frozen(params, patterns)


def _trained(patterns: Sequence[str]) -> Callable[[Any], Any]:
    return lambda params: jax.tree.map(operator.not_, param_patterns.match_frozen(params, patterns))


def is_skipped(state: optax.ApplyIfFiniteState, skip_nonfinite: int) -> jax.Array:
    """Whether the optimizer ignored the last gradient: bool []. `state`: after its update, of an optimizer that skips."""
    return ~state.last_finite & (state.notfinite_count <= skip_nonfinite)


def is_kernel(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a parameter is a kernel of a linear layer or a convolution; norms, biases and embeddings are not.

    Args:
      path: its keys in the tree; Flax's layers name kernels "kernel" and embeddings "embedding".
      leaf: the array, or its shape and type.
    """
    return leaf.ndim >= 2 and getattr(path[-1], "key", None) == "kernel"


def kernel_mask(params: Any) -> Any:
    """`is_kernel` of each parameter."""
    return jax.tree_util.tree_map_with_path(is_kernel, params)


def muon_dimensions(params: Any) -> Any:
    """For each parameter the axes of its matrix, or None for one that is left to Adam.

    Muon gets the kernels of 2 axes, [in, out], and of 4, [h, w, in, out], with MIN_MUON_CHANNELS or more channels at both
    ends.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not is_kernel(path, leaf) or leaf.ndim not in (2, 4) or min(leaf.shape[-2:]) < MIN_MUON_CHANNELS:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _check_decays(optimizer: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` is {value}, out of {optimizer}'s range: it must be at least 0 and below 1")


def _check_not_negative(optimizer: str, **values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"`{name}` is {value}, out of {optimizer}'s range: it must be 0 or more")
