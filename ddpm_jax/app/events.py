"""Between the events of the page and the model: values of controls, errors as messages, the user whose event it is."""

import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ddpm_jax.app.checks import integer, number
from ddpm_jax.app.jobs import Cancelled
from ddpm_jax.app.view import Settings
from ddpm_jax.runtime.errors import ExpectedError

logger = logging.getLogger(__name__)
_numbers = itertools.count()


@contextlib.contextmanager
def page_errors() -> Iterator[None]:
    """Context manager that shows errors on the page, in one line; those that are no fault of the user are logged too.

    Raises:
      gr.Error: instead of any other exception than Cancelled.
    """
    try:
        yield
    except (Cancelled, gr.Error):
        raise
    except Exception as error:
        line = error_line(error)
        if not isinstance(error, ExpectedError):
            logger.exception("the page failed")
            line = f"{type(error).__name__}: {line}"
            if "RESOURCE_EXHAUSTED" in line or isinstance(error, MemoryError):
                line = "there is not enough memory on the device: generate fewer images"
        raise gr.Error(line, duration=None, title="Not possible", print_exception=False) from error


def error_line(error: Exception) -> str:
    """The first line of an error."""
    return " ".join(str(error).split("\n", 1)[0].replace("`", "").split())


def with_request(run: Callable[..., Iterator[tuple]]) -> Callable[..., Iterator[tuple]]:
    """`run` as Gradio calls it: with the request first."""

    def event(request: gr.Request, *values: Any) -> Iterator[tuple]:
        yield from run(*values, request=request)

    return event


def settings_of(values: tuple) -> Settings:
    """The settings of the values of the panel."""
    label, seed, sampler, steps, spacing, eta, guidance, params, step = values
    return Settings(
        label=label or "",
        seed=integer(seed, "the seed"),
        sampler=sampler,
        num_steps=integer(steps, "the number of steps"),
        spacing=spacing,
        eta=number(eta, "eta"),
        guidance_scale=number(guidance, "the guidance scale"),
        params=params,
        step=integer(int(step) if isinstance(step, str) and step.isdecimal() else step, "the checkpoint"),
    )


def check_requests(page: gr.Blocks) -> None:
    """Make a page answer values that its controls do not take with one line, and never read files at other addresses."""
    preprocess = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *more: Any, **others: Any) -> Any:
        try:
            if _has_address(inputs):
                raise gr.Error("files at other addresses are not read: upload the image")
            return await preprocess(block_fn, inputs, *more, **others)
        except Exception as error:
            line = " ".join((error.message if isinstance(error, gr.Error) else str(error)).split("\n", 1)[0].split())[:300]
            if index := re.match(r"Could not preprocess input component at index (\d+)", line):
                line = f"the value of {block_fn.inputs[int(index[1])].label!r} is not valid"
            raise gr.Error(line, duration=None, title="Not possible", print_exception=False) from error

    page.preprocess_data = preprocess_data


def _has_address(value: Any) -> bool:
    """Whether JSON has a file whose path is an address such as http://..."""
    if isinstance(value, dict):
        return "://" in str(value.get("path", "")) or any(map(_has_address, value.values()))
    return isinstance(value, list) and any(map(_has_address, value))


def session_key(request: gr.Request, tab: str) -> str:
    """The key of the job of a tab of a user's page."""
    return f"{request.session_hash}-{tab}"


def editor_value(picture: np.ndarray) -> dict[str, Any]:
    """The value of an editor that shows a picture, with nothing painted."""
    return {"background": unique_picture(picture), "layers": [], "composite": None}


def unique_picture(picture: np.ndarray) -> Image.Image:
    """A picture, uint8 [H, W, 3], whose file differs from all others.

    Gradio names files by their content and writes them in place: a browser would fetch a file while the same picture is written
    again, such as the last x_t and the image that it is.
    """
    image = Image.fromarray(picture)
    image.info["number"] = str(next(_numbers))  # Gradio writes it into the PNG file
    return image


def shown_value(value: Any) -> Any:
    """The value of an output for a field of a `View`; None leaves it as it is."""
    if value is None:
        return gr.skip()
    return unique_picture(value) if isinstance(value, np.ndarray) else value
