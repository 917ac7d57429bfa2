"""Pictures on the page, without the buttons that would send them to another server."""

import gradio as gr


def shown_picture(label: str, height: int = 420) -> gr.Image:
    """A picture that is not an input; to be rendered later."""
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        elem_classes="pixels",
        height=height,
        buttons=["download", "fullscreen"],
        render=False,
    )


def picture_to_start_from(label: str) -> gr.Image:
    """A picture that can be uploaded."""
    return gr.Image(
        label=label,
        type="numpy",
        buttons=["fullscreen"],
        format="png",
        sources=["upload", "clipboard"],
        elem_classes="pixels",
        height=300,
    )
