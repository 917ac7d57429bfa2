"""Pictures on the page, without the buttons that would send them to another server; and those to start from."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs

from ddpm_jax.app.checks import integer
from ddpm_jax.app.events import editor_value, error_line, page_errors, unique_picture
from ddpm_jax.app.start_images import StartImages
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError

MAX_PAINTINGS = 16  # that the browsers sent, and no job has used yet
MAX_LAYERS = 8


def shown_picture(label: str, elem_id: str, height: int = 420) -> gr.Image:
    """A picture that is not an input; to be rendered later."""
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        elem_classes="pixels",
        elem_id=elem_id,
        height=height,
        min_width=300,  # of the label and the buttons; two pictures are below each other where there is less
        buttons=["download", "fullscreen"],
        render=False,
    )


def picture_to_start_from(
    images: StartImages, label: str, name: str, split: str, *, tab: gr.Tab | None = None, index: int = 0, height: int = 300
) -> list[gr.components.Component]:
    """A picture that can be uploaded, or loaded from the data set.

    Args:
      images: where it is from.
      label: above it.
      name: of the endpoint that loads it.
      split: of the data set, at first.
      tab: when it is opened, the first image is loaded; None: never.
      index: of the image of the data set, at first.
      height: in CSS pixels.

    Returns:
      The inputs of a job: [H, W, C] of the data's type, or None; and the uploaded file, in case of None.
    """
    shown = gr.Image(
        label=label,
        type="filepath",
        buttons=["fullscreen"],
        format="png",
        sources=["upload", "clipboard"],
        elem_classes="pixels",
        elem_id=f"{name}-image",
        height=height,
    )
    # The file as it is, for `StartImages.of_upload`, whose errors say more than Gradio's.
    shown.preprocess = lambda payload: payload.path if payload is not None else None
    image = gr.State(None)
    read = _reader(images, unique_picture)
    # Not `input`: when the image is removed, Gradio sends that event with the image that was there.
    shown.upload(read, shown, [image, shown], api_visibility="private")
    # The page removes the picture also when it refuses a file because of its size.
    shown.change(lambda path: gr.skip() if path else None, shown, image, queue=False, api_visibility="private")
    _load_from_data(images, tab, _picker(split, index), [image, shown], unique_picture, name)
    return [image, shown]


def picture_to_paint_on(
    images: StartImages, label: str, name: str, split: str, *, tab: gr.Tab
) -> list[gr.components.Component]:
    """As `picture_to_start_from`, in an editor with a brush.

    The editor does not upload files itself: it would send them as the browser shows them, with 8 bits, not as they are.
    """
    editor = gr.ImageEditor(
        label=label,
        type="numpy",
        format="png",
        sources=(),
        transforms=(),
        brush=gr.Brush(colors=["#e4572e"], color_mode="fixed", default_size=40),
        layers=False,
        buttons=[],
        elem_classes="pixels",
        elem_id="inpaint-editor",
        height=470,
        placeholder="load an image of the data set, or upload one",
    )
    _limit_paintings(editor)
    image = gr.State(None)
    picker = _picker(split, 0)
    upload = gr.UploadButton("Upload an image", file_types=["image"], type="filepath", size="sm", elem_id=f"{name}-upload")
    read = _reader(images, editor_value)
    upload.upload(read, upload, [image, editor], api_visibility="private")
    editor.clear(lambda: None, None, image, queue=False, api_visibility="private")
    _load_from_data(images, tab, picker, [image, editor], editor_value, name)
    return [image, editor]


def _limit_paintings(editor: gr.ImageEditor) -> None:
    """Limit what the editor keeps of the images that the browser sends before the event that reads them, if it comes."""
    accept, kept = editor.accept_blobs, editor.blob_storage

    @server
    def accept_blobs(data: AcceptBlobs) -> None:
        index = data.data["index"]
        if index and index != "null" and not 0 <= int(index) < MAX_LAYERS:
            raise InvalidArgumentError(f"the editor has no layer {index}")
        while data.data["id"] not in kept and len(kept) >= MAX_PAINTINGS:
            del kept[next(iter(kept))]
        accept(data)

    editor.accept_blobs = accept_blobs


def _reader(images: StartImages, value_of: Callable[[np.ndarray], Any]) -> Callable:
    """Reads an uploaded file, and shows what the model gets of it."""

    def read(path: str) -> tuple[Any, Any]:
        try:
            array = images.of_upload(path)
        except ExpectedError as error:  # not raised: the page would keep the file, and the image before it
            gr.Warning(error_line(error), duration=None, title="Not possible")
            return None, None
        with page_errors():
            return array, value_of(images.shown(array))

    return read


def _picker(split: str, index: int) -> tuple[gr.Textbox, gr.Number, gr.Button]:
    with gr.Row():
        return (
            gr.Textbox(split, label="Split", placeholder="as in training", min_width=100),
            gr.Number(index, label="Image of the data set", precision=0, min_width=100),
            gr.Button("Load", min_width=80),
        )


def _load_from_data(
    images: StartImages,
    tab: gr.Tab | None,
    picker: tuple[gr.Textbox, gr.Number, gr.Button],
    outputs: list[gr.components.Component],
    value_of: Callable[[np.ndarray], Any],
    name: str,
) -> None:
    """Loads an image of the data set when the button is pressed, and when the tab is opened without an image."""
    split, index, button = picker

    def load(split: str, index: Any) -> tuple[np.ndarray, Any]:
        with page_errors():
            array, label = images.of_data(split, integer(index, "the index of the image"))
            if label:
                gr.Info(f"class {label}", duration=3)
            return array, value_of(images.shown(array))

    def first(split: str, index: Any, has: Any, given: Any) -> tuple[Any, Any]:
        is_empty = given is None or (isinstance(given, dict) and given.get("background") is None)
        if has is not None or not is_empty:
            return gr.skip(), gr.skip()
        try:
            array, _ = images.of_data(split, integer(index, "the index"))
        except Exception:  # without the data set, the user uploads an image
            return gr.skip(), gr.skip()
        return array, value_of(images.shown(array))

    button.click(load, [split, index], outputs, api_name=f"load_{name}")
    if tab is not None:
        tab.select(first, [split, index, *outputs], outputs, api_visibility="private")
