"""Between the events of the page and the model: values of controls, errors as messages, the user whose event it is."""

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
from gradio import utils
from PIL import Image
from pydantic import ValidationError

from ddpm_jax.app.checks import integer, number
from ddpm_jax.app.jobs import Cancelled
from ddpm_jax.app.view import Settings
from ddpm_jax.runtime.errors import ExpectedError

logger = logging.getLogger(__name__)
_numbers = itertools.count()


@contextlib.contextmanager
def page_errors(*, visible: bool = True) -> Iterator[None]:
    """Context manager that makes errors one line; those that are no fault of the user are logged too.

    Args:
      visible: as a message on the page; False: for programs only.

    Raises:
      gr.Error: instead of any other exception than Cancelled.
    """
    try:
        yield
    except (Cancelled, gr.Error):
        raise
    except Exception as error:
        line = error_line(error)
        if "RESOURCE_EXHAUSTED" in line or isinstance(error, MemoryError):
            line = "there is not enough memory on the device: generate fewer images"
            logger.warning(line)
        elif not isinstance(error, ExpectedError):
            logger.exception("the page failed")
            line = f"{type(error).__name__}: {line}"
        raise _page_error(line, visible) from error


def _page_error(line: str, visible: bool = True) -> gr.Error:
    return gr.Error(line, duration=None, visible=visible, title="Not possible", print_exception=False)


def error_line(error: Exception) -> str:
    """The first line of an error."""
    return " ".join(str(error).split("\n", 1)[0].replace("`", "").split())


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
    """Make a page answer values that its controls do not take with one line, and read no files but uploads and its pictures."""
    preprocess = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *more: Any, **others: Any) -> Any:
        try:
            if block_fn.fn is None:
                raise gr.Error("the page has no such event: reload it")
            return await preprocess(block_fn, _with_own_files(inputs, utils.get_upload_folder()), *more, **others)
        except Exception as error:
            line = error.message if isinstance(error, gr.Error) else error_line(error)
            if index := re.match(r"Could not preprocess input component at index (\d+)", line):
                line = f"the value of {block_fn.inputs[int(index[1])].label!r} is not valid"
            elif isinstance(error, ValidationError):
                line = "a value is not valid: reload the page"
            raise _page_error(line[:300]) from error

    page.preprocess_data = preprocess_data


def _with_own_files(value: Any, folder: str) -> Any:
    """JSON in which a file that is not in the folder of uploads and pictures, or no longer, is None.

    Gradio checks the paths of files that have its mark only, and reads the others; it deletes files that are an hour old.
    """
    if isinstance(value, dict) and "path" in value:
        path = str(value["path"])
        is_own = os.path.isfile(path) and utils.is_in_or_equal(path, folder)
        return value | {"meta": {"_type": "gradio.FileData"}} if is_own else None
    if isinstance(value, dict):
        return {name: _with_own_files(item, folder) for name, item in value.items()}
    return [_with_own_files(item, folder) for item in value] if isinstance(value, list) else value


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
    if isinstance(value, list):
        return [list(row) for row in value]  # of a table, to which the job adds rows
    return unique_picture(value) if isinstance(value, np.ndarray) else value
