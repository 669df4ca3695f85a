// A picture of the field from few of its samples: what op/sparse.py does in Python, of which this is a translation.
//
// A ray matters only where it can be seen and has density. Every 4th ray of every 4th row is evaluated. Between four of
// these the distances lie between theirs, give or take as much as they bend nearby. What may have weight by that is
// evaluated, front to back. A picture that moves may be coarser (`moving`): it trusts the distances in between, or those
// of the volume that the surface was made of, where there is one.

export const GRID = 4;           // rays between those that are looked at first
const BENDS = 0.5;               // of the second differences nearby: how far beyond its corners a distance may go
const NO_WEIGHT = 3e-5;          // samples with less weight are left out
const NO_WEIGHT_MOVING = 0.05;
const ROUNDS = 6, ROUNDS_MOVING = 2;
const PROBE = 257;               // every so manieth ray is evaluated as a whole, to see whether something was overlooked

/** The rotation of a camera (camera.cameras_at), row by row; its third column is also the camera's place. */
export function rotationOf(azimuth, elevation) {
  const sa = Math.sin(azimuth), ca = Math.cos(azimuth), se = Math.sin(elevation), ce = Math.cos(elevation);
  return [ca, -se * sa, ce * sa, 0, ce, se, -sa, -se * ca, ce * ca];
}

/** Rays through pixels: unit view directions in the camera's frame, directions in the world, and their lengths. */
class Rays {
  constructor(side, view, model) {
    this.side = side;
    this.rotation = rotationOf(view.azimuth, view.elevation);
    this.focal = 0.5 * side / model.tangent;
    this.t = model.t;
  }

  /** The direction of the ray through (row, column) into `local` (camera) and `world`; returns its length. */
  direction(row, column, local, world) {
    const r = this.rotation, x = (column + 0.5 - this.side / 2) / this.focal;
    const y = -(row + 0.5 - this.side / 2) / this.focal, length = Math.hypot(x, y, 1);
    local[0] = x / length; local[1] = y / length; local[2] = -1 / length;
    for (let i = 0; i < 3; i++) world[i] = r[3 * i] * x + r[3 * i + 1] * y - r[3 * i + 2];
    return length;
  }

  /** World points (P,3) of samples, and view directions if wanted; at(p) gives row, column, depth. */
  points(count, at, viewdirs) {
    const points = new Float32Array(3 * count), local = [0, 0, 0], world = [0, 0, 0], r = this.rotation;
    for (let p = 0; p < count; p++) {
      const [row, column, depth] = at(p);
      this.direction(row, column, local, world);
      for (let i = 0; i < 3; i++) points[3 * p + i] = r[3 * i + 2] + this.t[depth] * world[i];
      if (viewdirs) viewdirs.set(local, 3 * p);
    }
    return points;
  }
}

/**
 * Renders side x side rays of the field. field: {distance(points), full(points, viewdirs)}, both async, of one latent.
 * guess(x, y, z): the distance of a point of the world as far as it is known, for a moving picture. Returns {colors (R*3, in [0, 1]), features (channels*R, channel by channel) or null}.
 */
export async function renderSparsely(field, side, view, model, {moving = false, features = true, guess = null} = {}) {
  const rays = new Rays(side, view, model), picture = new Picture(rays, model, moving);
  if (guess) picture.believe(guess);
  else picture.bound(await field.distance(rays.points(...picture.coarse())));
  for (let round = 0; round < (moving ? ROUNDS_MOVING : ROUNDS); round++) {
    const wanted = picture.wanted(round);
    if (!wanted.length) break;
    const samples = model.t.length, viewdirs = new Float32Array(3 * wanted.length);
    const points = rays.points(wanted.length, p => {
      const ray = Math.floor(wanted[p] / samples);
      return [Math.floor(ray / side), ray % side, wanted[p] % samples];
    }, viewdirs);
    picture.take(wanted, await field.full(points, viewdirs));
  }
  return picture.blend(features);
}

/** The samples of a picture: between which distances they lie (low, high), and what they are, or a guess (values). */
class Picture {
  constructor(rays, model, moving) {
    const {side} = rays, samples = model.t.length, count = side * side * samples;
    Object.assign(this, {rays, model, moving, side, samples, parts: []});
    this.nodes = side / GRID + 1;
    this.values = new Float32Array(count);
    this.low = moving ? this.values : new Float32Array(count);
    this.high = moving ? this.values : new Float32Array(count);
    this.row = new Int32Array(count).fill(-1);  // of each sample among those that were evaluated in full
    this.known = new Uint8Array(count);         // whether its distance is exact
    this.evaluated = 0;
    this.length = new Float64Array(side * side);
    for (let ray = 0, a = [0, 0, 0], b = [0, 0, 0]; ray < side * side; ray++)
      this.length[ray] = rays.direction(Math.floor(ray / side), ray % side, a, b);
  }

  /** How many samples are evaluated at first, and which. */
  coarse() {
    const {nodes, samples} = this;
    return [nodes * nodes * samples, p => {
      const node = Math.floor(p / samples);
      return [GRID * Math.floor(node / nodes), GRID * (node % nodes), p % samples];
    }];
  }

  /** Fill in all distances from those of the coarse samples. */
  bound(found) {
    const {nodes, samples, side, values, low, high, known} = this, cells = nodes - 1;
    const room = this.moving ? null : this.room(found);
    for (let row = 0, at = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const i = Math.floor(row / GRID), j = Math.floor(column / GRID), y = row % GRID / GRID, x = column % GRID / GRID;
        const corner = (i * nodes + j) * samples, below = corner + nodes * samples, cell = (i * cells + j) * samples;
        const exact = x === 0 && y === 0;
        for (let k = 0; k < samples; k++, at++) {
          const value = (1 - y) * ((1 - x) * found[corner + k] + x * found[corner + samples + k])
            + y * ((1 - x) * found[below + k] + x * found[below + samples + k]);
          values[at] = value;
          known[at] = exact ? 1 : 0;
          if (!room) continue;
          low[at] = exact ? value : value - room[cell + k];
          high[at] = exact ? value : value + room[cell + k];
        }
      }
    }
  }

  /** Fill in all distances by a guess. */
  believe(guess) {
    const {side, samples, rays, values} = this, world = [0, 0, 0], [, , ox, , , oy, , , oz] = rays.rotation;
    for (let ray = 0, at = 0; ray < side * side; ray++) {
      rays.direction(Math.floor(ray / side), ray % side, [], world);
      for (const t of rays.t) values[at++] = guess(ox + t * world[0], oy + t * world[1], oz + t * world[2]);
    }
  }

  /** How far beyond its corners the distance may go in each cell: by how much it bends nearby. */
  room(found) {
    const {nodes, samples} = this, cells = nodes - 1, line = nodes * samples;
    const bends = new Float32Array(found.length);
    for (let i = 0; i < nodes; i++) for (let j = 0; j < nodes; j++) for (let k = 0; k < samples; k++) {
      const at = i * line + j * samples + k;
      if (i > 0 && i < cells) bends[at] += Math.abs(found[at - line] + found[at + line] - 2 * found[at]);
      if (j > 0 && j < cells) bends[at] += Math.abs(found[at - samples] + found[at + samples] - 2 * found[at]);
    }
    const most = largestNearby(bends, [nodes, nodes, samples], 1), room = new Float32Array(cells * cells * samples);
    for (let i = 0, to = 0; i < cells; i++) for (let j = 0; j < cells; j++) for (let k = 0; k < samples; k++, to++) {
      const at = i * line + j * samples + k;
      room[to] = BENDS * Math.max(most[at], most[at + samples], most[at + line], most[at + line + samples]);
    }
    return room;
  }

  /** The samples that may have weight and have not been evaluated in full. */
  wanted(round) {
    const {side, samples, low, values, row, moving, model} = this, found = [];
    const thick = round && !moving ? this.high : values, least = moving ? NO_WEIGHT_MOVING : NO_WEIGHT;
    for (let ray = 0; ray < side * side; ray++) {
      const probe = !moving && round === 0 && ray % PROBE === 0;
      for (let k = 0, at = ray * samples, passed = 0; k < samples; k++, at++) {
        const last = k === samples - 1, length = last ? 0 : (model.t[k + 1] - model.t[k]) * this.length[ray];
        const weight = (last ? 1 : -Math.expm1(-density(low[at], model.beta) * length)) * Math.exp(-passed);
        if (row[at] < 0 && (probe || weight > least)) found.push(at);
        passed += density(thick[at], model.beta) * length;
        if (!probe && passed > 30) break;
      }
    }
    return found;
  }

  /** Put in what the field gave for samples, and widen the bounds around those that lay outside of theirs. */
  take(wanted, part) {
    let around = null;
    wanted.forEach((at, p) => {
      const found = part.distances[p], outside = Math.max(this.low[at] - found, found - this.high[at]);
      if (outside > 0 && !this.moving && !this.known[at]) (around ??= new Float32Array(this.row.length))[at] = outside;
      this.row[at] = this.evaluated + p;
    });
    if (around) {
      around = largestNearby(around, [this.side, this.side, this.samples], GRID);
      for (let at = 0; at < around.length; at++) {
        if (this.row[at] >= 0 || this.known[at]) continue;
        this.low[at] -= 2 * around[at];
        this.high[at] += 2 * around[at];
      }
    }
    wanted.forEach((at, p) => { this.values[at] = this.low[at] = this.high[at] = part.distances[p]; });
    this.parts.push({first: this.evaluated, ...part});
    this.evaluated += wanted.length;
  }

  /** Sums along the rays, by the weights of volume_renderer.ray_weights with --force_background. */
  blend(withFeatures) {
    const {side, samples, values, row, model} = this, {channels, beta, t} = model, rays = side * side;
    const colors = new Float32Array(3 * rays), features = withFeatures ? new Float32Array(channels * rays) : null;
    const weights = new Float64Array(samples);
    const sum = withFeatures ? new Float64Array(channels) : null;
    for (let ray = 0; ray < rays; ray++) {
      let left = 1, all = 0, kept = 0;
      for (let k = 0, at = ray * samples; k < samples - 1; k++, at++) {
        const clear = Math.exp(-density(values[at], beta) * (t[k + 1] - t[k]) * this.length[ray]);
        weights[k] = (1 - clear) * left;
        left *= clear + 1e-10;
        all += weights[k];
        if (row[at] >= 0) kept += weights[k];
      }
      weights[samples - 1] = 1 - all;
      if (row[(ray + 1) * samples - 1] >= 0) kept += weights[samples - 1];
      if (sum) sum.fill(0);
      for (let k = 0, at = ray * samples; k < samples; k++, at++) {
        if (row[at] < 0) continue;
        const weight = weights[k] / Math.max(kept, NO_WEIGHT), part = this.partOf(row[at]), p = row[at] - part.first;
        for (let i = 0; i < 3; i++) colors[3 * ray + i] += weight * part.colors[3 * p + i];
        if (sum) for (let i = 0, from = p * channels; i < channels; i++) sum[i] += weight * part.features[from + i];
      }
      if (sum) for (let i = 0; i < channels; i++) features[i * rays + ray] = sum[i];
    }
    return {colors, features, evaluated: this.evaluated};
  }

  partOf(row) {
    let i = this.parts.length - 1;
    while (this.parts[i].first > row) i--;
    return this.parts[i];
  }
}

/** The density of a signed distance (volume_renderer.SigmoidDensity). */
function density(distance, beta) {
  return 1 / (1 + Math.exp(distance / beta)) / beta;
}

/** The largest value within `reach` of each sample along each axis of a volume. */
function largestNearby(volume, shape, reach) {
  let source = volume;
  for (let axis = 0, step = shape[1] * shape[2]; axis < 3; axis++, step = axis === 1 ? shape[2] : 1) {
    const out = new Float32Array(source.length), size = shape[axis];
    for (let at = 0; at < source.length; at++) {
      const place = Math.floor(at / step) % size;
      let most = source[at];
      for (let shift = Math.max(-reach, -place); shift <= Math.min(reach, size - 1 - place); shift++)
        most = Math.max(most, source[at + shift * step]);
      out[at] = most;
    }
    source = out;
  }
  return source;
}
