// Decoding of the embedded arrays, and conversion between levels 0..255 and floats in [-1, 1] as in ddpm_jax.diffusion.pixels.

const ARRAY_TYPES = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** {dtype, shape, base64} -> {data: a typed array, shape}. */
function decodeArray(entry) {
  return { data: new ARRAY_TYPES[entry.dtype](bytesOf(entry.base64).buffer), shape: entry.shape };
}

/** Row `index` of an array whose rows have `size` elements; a view. */
function rowOf(array, index, size) {
  return array.subarray(index * size, (index + 1) * size);
}

/** Levels 0..255 -> float32 in [-1, 1]; floats stay as they are. */
function fromLevels(levels) {
  if (levels instanceof Float32Array) return levels;
  return Float32Array.from(levels, (level) => Math.fround(level / 127.5) - 1);
}

/** The level of one value, by rounding, after clipping to [-1, 1]. */
function toLevel(x) {
  return Math.floor(Math.min(255, Math.max(0, Math.fround(x * 127.5) + 128)));
}

function toLevels(x) {
  return x instanceof Uint8Array ? x : Uint8Array.from(x, toLevel);
}
