// The trained network in the page: ONNX, run by onnxruntime-web. `onnxNetworks` is defined by the elements before the scripts.

const hasNetwork = () => typeof onnxNetworks !== "undefined";

/** {evaluate(x, t, label)}: the network's output for one image, Float32Array; t is that of the training chain. */
async function loadNetwork() {
  const network = await onnxNetworks.load("denoiser");
  const hasLabels = network.inputs.some((input) => input.name === "labels");
  return {
    async evaluate(x, t, label) {
      const inputs = { x_t: x, t: Int32Array.of(t) };
      if (hasLabels) inputs.labels = Int32Array.of(label);
      return (await network.run(inputs, 1)).output;
    },
  };
}

/**
 * Computes chains one at a time: {run, stop}. `run` calls `work({requested})` unless a chain is being computed already, also
 * by another section; requested becomes true when `stop` is called or its button is pressed.
 */
function makeRunner(page, start, stopButton, work) {
  let current = null;
  const stop = () => {
    if (current) current.requested = true;
  };
  const run = async () => {
    if (page.busy) return;
    page.setBusy(true);
    current = { requested: false };
    stopButton.disabled = false;
    try {
      await work(current);
    } finally {
      current = null;
      stopButton.disabled = true;
      page.setBusy(false);
    }
  };
  start.addEventListener("click", run);
  stopButton.addEventListener("click", stop);
  return { run, stop };
}
