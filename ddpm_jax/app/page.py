"""The page itself, of Gradio: a panel of settings, and a tab for each thing to do. model.py does the work."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from ddpm_jax.app import events, pictures
from ddpm_jax.app.checks import integer, number
from ddpm_jax.app.components import picture_to_paint_on, picture_to_start_from, shown_picture
from ddpm_jax.app.controls import BRUSH
from ddpm_jax.app.events import page_errors, session_key, settings_of
from ddpm_jax.app.jobs import Cancelled, Jobs, Work
from ddpm_jax.app.model import Model
from ddpm_jax.app.view import View, waiting_text

CSS = """
.pixels img, .pixels canvas { image-rendering: pixelated; }
.pixels img { width: 100%; object-fit: contain; padding-top: 28px; }
footer { display: none !important; }
.status { min-height: 1.5em; overflow: hidden !important; }
"""
TABLE = ["sampler", "steps", "NFE", "time, or why not"]
TABS = ("generate", "compare", "inpaint", "image_to_image", "interpolate")


class Outputs(NamedTuple):
    """What a tab shows, as the fields of `View`; the table only in the comparison."""

    picture: gr.Image
    predicted: gr.Image
    status: gr.Markdown
    call: gr.Textbox
    table: gr.Dataframe | None = None


class Page:
    """The page of a model."""

    def __init__(self, model: Model):
        self._model, self._controls = model, model.controls
        self._jobs = Jobs(lambda before: View(None, None, waiting_text(before), None, None))

    def build(self) -> gr.Blocks:
        """The page, to be launched with `CSS`."""
        with gr.Blocks(title=f"ddpm_jax · {self._model.title}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown(f"### ddpm_jax · {self._model.title}")
            with gr.Row():
                with gr.Column(scale=1, min_width=270):
                    panel = self._panel()
                with gr.Column(scale=4):
                    condition = self._condition()
                    with gr.Tab("Generate", id="generate"):
                        self._generate_tab(condition, panel)
                    with gr.Tab("Compare samplers", id="compare"):
                        self._compare_tab(condition, panel)
                    if not self._controls.has_condition:
                        with gr.Tab("Inpaint", id="inpaint") as tab:
                            self._inpaint_tab(tab, panel)
                        with gr.Tab("Image to image", id="image_to_image") as tab:
                            self._image_to_image_tab(tab, panel)
                        with gr.Tab("Interpolate", id="interpolate") as tab:
                            self._interpolate_tab(tab, panel)
            page.load(self._checkpoints, None, panel[-1], queue=False, api_visibility="private")
            page.unload(self._leave)
        events.check_requests(page)
        page.queue(default_concurrency_limit=None, api_open=False)  # `Jobs` is the queue of the jobs
        return page

    def close(self) -> None:
        """Cancel all jobs."""
        self._jobs.close()

    # The parts.

    def _panel(self) -> list[gr.components.Component]:
        """The controls of `Settings`, in its order; those that the model does not have are hidden."""
        controls = self._controls
        start, choices, limits = controls.start, controls.choices, controls.limits
        label = gr.Dropdown(choices["sample_label"], value=start.label or None, label="Class", visible=bool(controls.classes))
        seed = gr.Number(start.seed, label="Seed", precision=0, elem_id="seed")
        sampler = gr.Dropdown(choices["sampler"], value=start.sampler, label="Sampler")
        steps = gr.Slider(*limits["num_steps"], value=start.num_steps, step=1, label="Steps")
        spacing = gr.Dropdown(choices["spacing"], value=start.spacing, label="Spacing of the steps")
        eta = gr.Slider(
            *limits["eta"], value=start.eta, step=0.05, label="eta", info="noise of DDIM", visible=start.sampler == "ddim"
        )
        sampler.change(lambda name: gr.update(visible=name == "ddim"), sampler, eta, queue=False, api_visibility="private")
        guidance = gr.Slider(
            *limits["guidance_scale"],
            value=start.guidance_scale,
            step=0.1,
            label="Guidance scale",
            info="1 is none, 0 ignores the condition" if controls.has_condition else "1 is none, 0 ignores the class",
            visible=controls.has_guidance,
        )
        params = gr.Dropdown(choices["params"], value=start.params, label="Parameters", allow_custom_value=controls.has_lengths)
        step = gr.Dropdown([str(start.step)], value=str(start.step), label="Checkpoint", allow_custom_value=True)
        return [label, seed, sampler, steps, spacing, eta, guidance, params, step]

    def _checkpoints(self) -> dict[str, Any]:
        """The checkpoints that there are when the page is opened: a run that is being trained writes new ones."""
        with page_errors():
            return gr.update(choices=[str(step) for step in self._model.steps()])

    def _condition(self) -> list[gr.components.Component]:
        """The condition image for all tabs, as `picture_to_start_from`; [] for a model without."""
        images = self._model.conditions
        if images is None:
            return []
        size = "x".join(map(str, images.shape[:2]))
        with gr.Accordion(f"Condition image, {size} pixels"):
            gr.Markdown("Without one, each image is generated from another one of the data set.")
            return picture_to_start_from(images, "condition image", "condition", "", height=220)

    def _given_condition(self, values: tuple) -> tuple[np.ndarray | None, tuple]:
        """The condition image, if the model has and the user chose one, and the values of the panel."""
        if self._model.conditions is None:
            return None, values
        image, shown, *panel = values
        given = None if image is None and shown is None else self._model.conditions.given(image, shown)
        return given, tuple(panel)

    def _outputs(self, tab: str, first: str, after: str = "") -> Outputs:
        """Outputs that are placed on the page below the buttons."""
        second = f"predicted image (pred_xstart){after}"
        call = gr.Textbox(label="the same in Python", interactive=False, lines=2, buttons=["copy"], render=False)
        picture, predicted = shown_picture(first, f"{tab}-picture"), shown_picture(second, f"{tab}-predicted")
        return Outputs(picture, predicted, _status(), call)

    def _buttons(self, name: str, work_of: Callable[..., Work], inputs: list, outputs: Outputs, tab: str) -> None:
        """The buttons that run a job and cancel it, and the outputs below; `work_of` makes the work of the inputs' values."""
        with gr.Row():
            start = gr.Button(name, variant="primary", elem_id=f"{tab}-run")
            cancel = gr.Button("Cancel", elem_id=f"{tab}-cancel")
        outputs.status.render()
        with gr.Row():
            outputs.picture.render()
            outputs.predicted.render()
        if outputs.table is not None:
            outputs.table.render()
        outputs.call.render()
        shown = [output for output in outputs if output is not None]

        def run(request: gr.Request, *values: Any) -> Iterator[tuple]:
            for view in self._views(session_key(request, tab), lambda: work_of(*values)):
                yield tuple(map(events.shown_value, view[: len(shown)]))

        event = start.click(run, inputs, shown, api_name=tab, show_progress="hidden")  # the status is the progress

        def stop(request: gr.Request) -> None:
            self._jobs.cancel(session_key(request, tab))

        # A status that `stop` returned would be overwritten by the last stage, which is still on its way.
        stopped = cancel.click(stop, None, None, cancels=[event], queue=False, api_name=f"cancel_{tab}")
        stopped.then(lambda: "cancelled", None, outputs.status, queue=False, api_visibility="private")

    def _views(self, session: str, make: Callable[[], Work]) -> Iterator[View]:
        """Run the job that `make` makes; yields what the page shows, which is also what became of it."""
        try:
            with page_errors(visible=False):
                yield from self._jobs.run(session, make())
        except Cancelled:
            yield View(None, None, "cancelled", None, None)
        except gr.Error as error:
            yield View(None, None, f"not possible: {error.message}", None, None)
            raise  # for programs

    def _leave(self, request: gr.Request) -> None:
        """Cancel the jobs of a page that was closed."""
        for tab in TABS:
            self._jobs.cancel(session_key(request, tab))

    # The tabs.

    def _generate_tab(self, condition: list, panel: list) -> None:
        number = gr.Slider(*self._controls.limits["num_images"], value=16, step=1, label="Images")
        outputs = self._outputs("generate", "x_t, then the images", ", then the condition images" if condition else "")

        def work_of(number: Any, *values: Any) -> Work:
            given, values = self._given_condition(values)
            settings, count = settings_of(values), integer(number, "the number of images")
            return lambda emit: self._model.generate(settings, count, emit, given)

        self._buttons("Generate", work_of, [number, *condition, *panel], outputs, "generate")

    def _compare_tab(self, condition: list, panel: list) -> None:
        names, limits = self._controls.choices["sampler"], self._controls.limits
        gr.Markdown("Each sampler takes as many steps as its network evaluations (NFE) allow, from the same noise.")
        with gr.Row():
            chosen = gr.CheckboxGroup(names, value=[name for name in names if name != "ode"], label="Samplers", min_width=300)
            nfe = gr.Slider(*limits["nfe"], value=min(20, limits["nfe"][1]), step=1, label="Network evaluations")
            number = gr.Slider(*limits["compared_images"], value=8, step=1, label="Images")
        predicted, call = (kind(visible=False, render=False) for kind in (gr.Image, gr.Textbox))
        table = gr.Dataframe(headers=TABLE, interactive=False, wrap=True, label="", render=False)
        outputs = Outputs(shown_picture("images", "compare-picture", 520), predicted, _status(), call, table)

        def work_of(chosen: Any, nfe: Any, number: Any, *values: Any) -> Work:
            given, values = self._given_condition(values)
            settings, budget, count = settings_of(values), integer(nfe, "NFE"), integer(number, "the number of images")
            return lambda emit: self._model.compare(settings, chosen, budget, count, emit, given)

        self._buttons("Compare", work_of, [chosen, nfe, number, *condition, *panel], outputs, "compare")

    def _inpaint_tab(self, tab: gr.Tab, panel: list) -> None:
        edit, limits = self._controls.edit, self._controls.limits
        label, images = "paint over what is to be generated", self._model.images
        with gr.Row():
            with gr.Column():
                image, editor = picture_to_paint_on(images, label, "inpaint", edit["split"], tab=tab)
            with gr.Column():
                mask = gr.Radio(self._controls.choices["mask"], value=BRUSH, label="Generate what is")
                samples = gr.Slider(*limits["samples_per_image"], value=edit["samples_per_image"], step=1, label="Samples")
                resampling = gr.Slider(
                    *limits["resampling"],
                    value=edit["resampling"],
                    step=1,
                    label="Resampling (RePaint)",
                    info="1 is fast, and fits worse",
                )
        outputs = self._outputs("inpaint", "x_t, then the image and samples")

        def work_of(image: Any, value: Any, mask: Any, samples: Any, resampling: Any, *values: Any) -> Work:
            settings, counts = settings_of(values), (integer(samples, "samples"), integer(resampling, "resampling"))
            value = value or {}
            start = self._model.images.given(image, value.get("background"))
            where = mask if mask != BRUSH else pictures.read_mask(value.get("layers"), self._model.run.image_shape[:2])
            return lambda emit: self._model.inpaint(settings, start, where, *counts, emit)

        self._buttons("Inpaint", work_of, [image, editor, mask, samples, resampling, *panel], outputs, "inpaint")

    def _image_to_image_tab(self, tab: gr.Tab, panel: list) -> None:
        edit, limits = self._controls.edit, self._controls.limits
        with gr.Row():
            with gr.Column():
                image, shown = picture_to_start_from(self._model.images, "image", "image_to_image", edit["split"], tab=tab)
            with gr.Column():
                strength = gr.Slider(
                    *limits["strength"],
                    value=edit["strength"],
                    step=0.05,
                    label="Strength",
                    info="1 starts from noise and keeps nothing",
                )
                samples = gr.Slider(*limits["samples_per_image"], value=edit["samples_per_image"], step=1, label="Samples")
        outputs = self._outputs("image_to_image", "x_t, then the image and its variants")

        def work_of(image: Any, shown: Any, strength: Any, samples: Any, *values: Any) -> Work:
            settings, count, part = settings_of(values), integer(samples, "samples"), number(strength, "the strength")
            start = self._model.images.given(image, shown)
            return lambda emit: self._model.image_to_image(settings, start, part, count, emit)

        self._buttons("Generate variants", work_of, [image, shown, strength, samples, *panel], outputs, "image_to_image")

    def _interpolate_tab(self, tab: gr.Tab, panel: list) -> None:
        edit, limits, ends = self._controls.edit, self._controls.limits, []
        source = gr.Radio(["two seeds", "two images"], value="two seeds", label="From")
        with gr.Row() as seeds:
            first, last = gr.Number(0, label="First seed", precision=0), gr.Number(1, label="Last seed", precision=0)
        with gr.Row(visible=False) as images:
            for index, name in enumerate(("first", "last")):
                with gr.Column():
                    ends += picture_to_start_from(
                        self._model.images, f"{name} image", f"interpolate_{name}", edit["split"], tab=tab, index=index
                    )
        by_seed = lambda name: (gr.update(visible=name == "two seeds"), gr.update(visible=name != "two seeds"))  # noqa: E731
        source.change(by_seed, source, [seeds, images], queue=False, api_visibility="private")
        with gr.Row():
            frames = gr.Slider(*limits["num_frames"], value=edit["num_frames"], step=1, label="Frames, both ends included")
            iters = gr.Slider(
                *limits["inversion_iters"],
                value=edit["inversion_iters"],
                step=1,
                label="Network evaluations per step of inversion",
            )
        outputs = self._outputs("interpolate", "x_t, then the frames")

        def work_of(source: Any, first: Any, last: Any, *values: Any) -> Work:
            (image_a, shown_a, image_b, shown_b, frames, iters), values = values[:6], values[6:]
            settings, counts = settings_of(values), (integer(frames, "frames"), integer(iters, "evaluations"))
            if source == "two seeds":
                chosen: list[Any] = [integer(first, "the first seed"), integer(last, "the last seed")]
            else:
                given = self._model.images.given
                chosen = [given(image_a, shown_a), given(image_b, shown_b)]
            return lambda emit: self._model.interpolate(settings, chosen, *counts, emit)

        inputs = [source, first, last, *ends, frames, iters, *panel]
        self._buttons("Interpolate", work_of, inputs, outputs, "interpolate")


def _status() -> gr.Markdown:
    """The line below the buttons: what a job does or why it cannot be done."""
    return gr.Markdown("", elem_classes="status", render=False)
