// The signed distances of one identity in a cube around the center, for its surface: coarse at first, then twice as fine
// twice, but only near the surface. In between they are interpolated.

export const FINEST = 129;                  // samples along a side
export const COARSEST = 4;                  // the first ones are so far apart
const CHUNK = 4096;                         // points that are evaluated at a time

/** Whether a point of the world lies in the frustum of the frontal camera, beyond which the field means nothing. */
export function seenFromFront(x, y, z, tangent) {
  const half = (1 - z) * tangent;
  return Math.abs(x) <= half && Math.abs(y) <= half;
}

/** The place of sample i of FINEST along an axis, in the world. */
export function place(i, radius) {
  return (2 * i / (FINEST - 1) - 1) * radius;
}

/**
 * Yields null after each piece of work, and {stride, values (FINEST^3, x fastest)} when the samples at multiples of
 * stride are there. distance(points): signed distances of world points, async.
 */
export async function* distances(distance, model) {
  const values = new Float32Array(FINEST ** 3), last = FINEST - 1;
  const index = (x, y, z) => x + FINEST * (y + FINEST * z);

  async function* evaluate(samples) {
    for (let first = 0; first < samples.length; first += CHUNK) {
      const part = samples.slice(first, first + CHUNK), points = new Float32Array(3 * part.length);
      part.forEach((at, p) => {
        points[3 * p] = place(at % FINEST, model.radius);
        points[3 * p + 1] = place(Math.floor(at / FINEST) % FINEST, model.radius);
        points[3 * p + 2] = place(Math.floor(at / FINEST ** 2), model.radius);
      });
      const found = await distance(points);
      part.forEach((at, p) => { values[at] = found[p]; });
      yield null;
    }
  }

  const nodes = [];
  for (let z = 0; z <= last; z += COARSEST) for (let y = 0; y <= last; y += COARSEST)
    for (let x = 0; x <= last; x += COARSEST) nodes.push(index(x, y, z));
  yield* evaluate(nodes);
  yield {stride: COARSEST, values};
  for (let stride = COARSEST / 2; stride >= 1; stride /= 2) {
    halve(values, stride);
    yield null;
    yield* evaluate(nearSurface(values, stride, model));
    yield {stride, values};
  }
}

/** Interpolate the samples at multiples of stride from those at multiples of twice that. */
function halve(values, stride) {
  const steps = [1, FINEST, FINEST ** 2], last = FINEST - 1;
  const strides = [2 * stride, 2 * stride, 2 * stride];
  for (const axis of [0, 1, 2]) {
    const [u, v] = [0, 1, 2].filter(other => other !== axis), step = stride * steps[axis];
    for (let a = 0; a <= last; a += strides[u]) for (let b = 0; b <= last; b += strides[v])
      for (let at = a * steps[u] + b * steps[v] + step, i = stride; i < last; i += 2 * stride, at += 2 * step)
        values[at] = (values[at - step] + values[at + step]) / 2;
    strides[axis] = stride;
  }
}

/** The new samples at multiples of stride in cells (of twice the stride) that the surface passes, and beside them. */
function nearSurface(values, stride, model) {
  const size = 2 * stride, cells = (FINEST - 1) / size, marked = new Uint8Array(cells ** 3), found = [];
  const index = (x, y, z) => x + FINEST * (y + FINEST * z), cell = (i, j, k) => i + cells * (j + cells * k);
  for (let k = 0; k < cells; k++) for (let j = 0; j < cells; j++) for (let i = 0; i < cells; i++) {
    let negative = 0;
    for (let c = 0; c < 8; c++)
      if (values[index((i + (c & 1)) * size, (j + (c >> 1 & 1)) * size, (k + (c >> 2)) * size)] < 0) negative++;
    if (negative === 0 || negative === 8) continue;
    const [x, y, z] = [i, j, k].map(one => place((one + 0.5) * size, model.radius));
    if (!seenFromFront(x, y, z - 2 * model.radius / cells, 1.05 * model.tangent)) continue;
    for (let w = Math.max(0, k - 1); w <= Math.min(cells - 1, k + 1); w++)
      for (let v = Math.max(0, j - 1); v <= Math.min(cells - 1, j + 1); v++)
        for (let u = Math.max(0, i - 1); u <= Math.min(cells - 1, i + 1); u++) marked[cell(u, v, w)] = 1;
  }
  const seen = new Uint8Array(values.length);
  for (let k = 0; k < cells; k++) for (let j = 0; j < cells; j++) for (let i = 0; i < cells; i++) {
    if (!marked[cell(i, j, k)]) continue;
    for (let n = 0; n < 27; n++) {
      const at = index(i * size + n % 3 * stride, j * size + Math.floor(n / 3) % 3 * stride,
        k * size + Math.floor(n / 9) * stride);
      const old = n % 3 !== 1 && Math.floor(n / 3) % 3 !== 1 && Math.floor(n / 9) !== 1;
      if (old || seen[at]) continue;
      seen[at] = 1;
      found.push(at);
    }
  }
  return found;
}

/** The distances of a volume anywhere, interpolated; beyond it those at its end. For renderSparsely. */
export function lookUp({values, stride}, radius) {
  const last = FINEST - 1, scale = last / stride / (2 * radius), cells = last / stride, steps = [1, FINEST, FINEST ** 2];
  return (...point) => {
    let at = 0;
    const [x, y, z] = point.map((one, axis) => {
      const position = Math.min(cells, Math.max(0, (one + radius) * scale)), low = Math.min(cells - 1, Math.floor(position));
      at += low * stride * steps[axis];
      return position - low;
    });
    const [a, b, c] = steps.map(step => step * stride);
    const row = from => values[from] + x * (values[from + a] - values[from]);
    const slice = from => row(from) + y * (row(from + b) - row(from));
    return slice(at) + z * (slice(at + c) - slice(at));
  };
}
