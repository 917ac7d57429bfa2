// The trained network in the page: ONNX, run by onnxruntime-web. `onnxNetworks` is defined by the elements before the scripts.

const hasNetwork = () => typeof onnxNetworks !== "undefined";

/**
 * {thread, evaluate(x, t, labels)}: the network's output for one image x at t of the training chain, once for each label,
 * joined: Float32Array. For a network without labels, [null]. It computes in a worker; `thread` is "page" where there is none.
 */
async function loadNetwork(name) {
  const network = await onnxNetworks.load(name);
  const hasLabels = network.inputs.some((input) => input.name === "labels");
  return {
    thread: network.thread,
    async evaluate(x, t, labels) {
      const count = labels.length;
      const images = new Float32Array(count * x.length);
      for (let i = 0; i < count; i++) images.set(x, i * x.length);
      const inputs = { x_t: images, t: new Int32Array(count).fill(t) };
      if (hasLabels) inputs.labels = Int32Array.from(labels);
      return (await network.run(inputs, count)).output;
    },
  };
}

/**
 * (x, t) -> the output of the network for a label, with classifier-free guidance: `ddpm_jax.samplers.guidance`, eq. 6. A
 * learned variance, in the channels after the first `channels`, is the conditional one.
 */
function guidedNetwork(network, { label, nullLabel, scale, channels }) {
  if (scale === 1 || nullLabel === null || label === nullLabel) return (x, t) => network.evaluate(x, t, [label]);
  return async (x, t) => {
    const both = await network.evaluate(x, t, [label, nullLabel]);
    const size = both.length / 2;
    const outputChannels = (size / x.length) * channels;
    const output = both.slice(0, size);
    for (let i = 0; i < size; i++) {
      if (i % outputChannels < channels) output[i] = both[size + i] + scale * (both[i] - both[size + i]);
    }
    return output;
  };
}

/**
 * Computes chains one at a time: {run, stop}. `run` calls `work({requested})` unless a chain is being computed already, also
 * by another section; requested becomes true when `stop` is called or its button is pressed. `state` is the element that
 * shows what went wrong, if anything did.
 */
function makeRunner(page, start, stopButton, state, work) {
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
    } catch (error) {
      state.textContent = `The network failed: ${error.message}. Open this page again to restart it.`;
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
