// `onnxNetworks`: models that this page contains, run by the ONNX Runtime that it contains. Joined by onnxruntime_web.py.

const onnxNetworks = (() => {
  /** The content of an element. This and `makeHost` are also parts of the worker's text, so that they use nothing else. */
  const expand = async (base64) => {
    const bytesOf = () => {
      if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
      const text = atob(base64);
      const bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      return bytes;
    };
    const gzip = new DecompressionStream("gzip");
    const writer = gzip.writable.getWriter();
    const written = writer.write(bytesOf()).then(() => writer.close());
    const [buffer] = await Promise.all([new Response(gzip.readable).arrayBuffer(), written]);
    return new Uint8Array(buffer);
  };

  /** ONNX Runtime in this thread: (command, argument) -> a promise. */
  const makeHost = (ort, expand) => {
    /** The file whose every fourth byte from the first on comes first, and so on: `onnxruntime_web.byte_planes`. */
    const joinPlanes = (planes) => {
      const bytes = new Uint8Array(planes.length);
      let from = 0;
      for (let plane = 0; plane < 4; plane++) {
        for (let i = plane; i < bytes.length; i += 4) bytes[i] = planes[from++];
      }
      return bytes;
    };
    const sessions = {};
    const commands = {
      async start({ wasm }) {
        Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await expand(wasm) });
      },
      async open({ name, model }) {
        const bytes = joinPlanes(await expand(model));
        sessions[name] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
        ort.env.wasm.wasmBinary = undefined; // compiled by now
      },
      async run({ name, inputs }) {
        const tensors = inputs.map(({ dtype, values, shape }) => new ort.Tensor(dtype, values, shape));
        const found = await sessions[name].run(Object.fromEntries(inputs.map((input, i) => [input.name, tensors[i]])));
        return Object.fromEntries(Object.entries(found).map(([output, { data }]) => [output, data]));
      },
    };
    let before = Promise.resolve();
    return (command, argument) => {
      const result = before.then(() => commands[command](argument)); // one command at a time
      before = result.catch(() => {});
      return result;
    };
  };

  const urlOf = (script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" }));

  const makePageHost = async (module) => {
    const url = urlOf(module);
    const ort = await import(url);
    URL.revokeObjectURL(url);
    return makeHost(ort, expand);
  };

  /** The module of ONNX Runtime as an expression for its exports. */
  const expressionOf = (module) => {
    const exported = (_, names) => `return {${names.replace(/(\w+) as (\w+)/g, "$2: $1")}}`;
    const body = module.replaceAll("import.meta.url", "self.location.href").replace(/export *\{([^}]*)\}/, exported);
    return `(() => { "use strict"; ${body} })()`;
  };

  /**
   * The same in a worker, which leaves the page's thread free. For a page that is opened as a file, Chromium makes no worker of
   * a module, and the worker of WebKit imports none: it is made of one script.
   */
  const makeWorkerHost = (module) => {
    const url = urlOf(`
      const host = (${makeHost})(${expressionOf(module)}, ${expand});
      onmessage = ({ data: [number, command, argument] }) => host(command, argument).then(
        (value) => postMessage({ number, value }),
        (error) => postMessage({ number, error: String(error?.message ?? error) }),
      );`);
    const worker = new Worker(url);
    const waiting = new Map(); // number of a command -> the functions of its promise
    let last = 0;
    worker.onmessage = ({ data: { number, value, error } }) => {
      URL.revokeObjectURL(url); // read by now
      const { resolve, reject } = waiting.get(number);
      waiting.delete(number);
      if (error === undefined) resolve(value);
      else reject(new Error(error));
    };
    worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker of the network failed"));
      waiting.clear();
    };
    return (command, argument) =>
      new Promise((resolve, reject) => {
        waiting.set(++last, { resolve, reject });
        worker.postMessage([last, command, argument]);
      });
  };

  const REST_MS = 25; // longest time in which the page's thread computes without drawing and handling input
  let rested = performance.now();
  const rest = async () => {
    if (performance.now() - rested < REST_MS) return;
    await new Promise((resolve) => setTimeout(resolve));
    rested = performance.now();
  };

  const element = (name) => {
    const found = document.getElementById("ELEMENT" + name);
    if (!found) throw new Error(`the page has no ONNX model ${name}`);
    return found;
  };

  const started = {}; // thread -> a promise of its host
  const start = async (thread) => {
    const module = new TextDecoder().decode(await expand(element("runtime-js").textContent));
    const host = await (thread === "worker" ? makeWorkerHost(module) : makePageHost(module));
    await host("start", { wasm: element("runtime-wasm").textContent });
    return host;
  };
  const open = async (thread, name) => {
    const host = await (started[thread] ??= start(thread));
    await host("open", { name, model: element(name).textContent });
    return { thread, host };
  };

  const load = async (name) => {
    const { inputs, outputs } = JSON.parse(element(name).dataset.model);
    const { thread, host } = await open("worker", name).catch(() => open("page", name));
    const described = ({ name: input, dtype, shape }, values, count) => {
      if (values === undefined) throw new Error(`${name} needs the input ${input}`);
      return { name: input, dtype, values, shape: shape.map((size) => (size === "b" ? count : size)) };
    };
    const run = async (values, count) => {
      if (thread === "page") await rest();
      return host("run", { name, inputs: inputs.map((input) => described(input, values[input.name], count)) });
    };
    return { inputs, outputs, thread, run };
  };
  return { load };
})();
