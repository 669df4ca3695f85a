// Runs the model: ONNX graphs in onnxruntime-web, by WebGPU where there is a device, else on the processor.
//
// The page sends what it wants to see; only the newest wish counts. While the hand moves, pictures are small enough for
// ten a second. When it rests, the full picture is computed, and then, in pieces that wishes can interrupt, the
// distances that the surface is made of.
import {GRID, renderSparsely} from './sparse.js';
import {distances, lookUp} from './volume.js';

const CHUNK = 4096;           // points of the field at a time: their activations stay in the processor's cache
const FRAME = 70;             // milliseconds that a moving picture may take
const THREADS = 4;            // at most

let ort, model, seeds, backend = 'wasm', wish = null, wake = () => {}, surface = null, cached = {};
const files = {}, sessions = {}, colorsWanted = [];
let perRay = null;            // milliseconds, of moving pictures so far
let ready = false;            // whether there was a picture yet

class Outdated extends Error {}

onmessage = ({data}) => {
  if (data.type === 'view') wish = data;
  else colorsWanted.push(data);
  wake();
};

// ------------------------------------------------------------------------------------------------ loading

async function bytes(name) {
  const answer = await fetch(new URL(`model/${name}`, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.arrayBuffer();
}

async function webgpu() {
  try {
    return new URLSearchParams(location.search).get('device') !== 'wasm' && await navigator.gpu?.requestAdapter();
  } catch {
    return null;
  }
}

async function load() {
  const names = ['latents', 'distance', 'field', 'style', 'decoder'];
  const facts = bytes('model.json'), z = bytes('seeds.bin');
  model = JSON.parse(new TextDecoder().decode(await facts));
  for (const name of names.slice(0, model.layers ? 5 : 3)) files[name] = bytes(`${name}.onnx`);
  const place = new URL('onnxruntime/', import.meta.url).href;
  if (await webgpu()) {
    backend = 'webgpu';
    ort = await import(`${place}ort.webgpu.min.mjs`).catch(() => null);
  }
  if (!ort) {
    backend = 'wasm';
    ort = await import(`${place}ort.wasm.min.mjs`);
  }
  ort.env.wasm.wasmPaths = place;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency || 1) : 1;
  ort.env.logLevel = 'error';
  seeds = new Float32Array(await z);
  postMessage({type: 'model', model, backend, threads: ort.env.wasm.numThreads});
}

/** Run a graph, which is made ready when it is first needed: the first picture does not wait for the decoder. */
async function run(name, feeds) {
  sessions[name] ??= await ort.InferenceSession.create(await files[name], {
    executionProviders: backend === 'webgpu' ? ['webgpu', 'wasm'] : ['wasm']});
  const session = sessions[name], tensors = {};
  for (const [input, [data, shape]] of Object.entries(feeds)) tensors[input] = new ort.Tensor('float32', data, shape);
  return session.run(tensors);
}

// ------------------------------------------------------------------------------------------------ latents and field

/** {w, wPrime (a function)} of two seeds, on the way from one to the other, moved along directions as --edit does. */
async function latents({seed, other, mix, truncation, edits: edited}) {
  const key = JSON.stringify([seed, other, mix, truncation, edited]);
  if (cached.key === key) return cached;
  const size = model.styleDim, psi = [Float32Array.of(truncation), [1]];
  const one = async number => (await run('latents', {
    z: [seeds.slice(number * size, (number + 1) * size), [1, size]], truncation: psi})).w.data;
  const w = (await one(seed)).slice();
  if (mix) (await one(other)).forEach((value, i) => { w[i] += mix * (value - w[i]); });
  const edits = model.directions.map((one, i) => [edited[i], one]).filter(([amount]) => amount);
  const own = w.slice();  // w' belongs to the latent before its edits
  for (const [amount, {w: step}] of edits) step?.forEach((value, i) => { w[i] += amount * value; });
  const wPrime = async () => {
    const styles = (await run('style', {w: [own, [1, size]], truncation: psi})).w_prime.data.slice();
    for (const [amount, {wPrime: steps}] of edits)
      steps?.flat().forEach((value, i) => { styles[i] += amount * value; });
    return styles;
  };
  cached = {key, w, wPrime};
  return cached;
}

/** The field of a latent, a part of the points at a time; between them `check` may throw. */
function fieldOf(w, check = () => {}) {
  const latent = [w, [1, w.length]];
  async function inParts(name, points, viewdirs, widths) {
    const count = points.length / 3, found = {};
    for (const [key, width] of Object.entries(widths)) found[key] = new Float32Array(width * count);
    for (let first = 0; first < count; first += CHUNK) {
      const last = Math.min(count, first + CHUNK), shape = [1, last - first, 3];
      const feeds = {w: latent, points: [points.slice(3 * first, 3 * last), shape]};
      if (viewdirs) feeds.viewdirs = [viewdirs.slice(3 * first, 3 * last), shape];
      const part = await run(name, feeds);
      for (const [key, width] of Object.entries(widths)) found[key].set(part[key].data, width * first);
      await check();
    }
    return found;
  }
  return {
    distance: async points => (await inParts('distance', points, null, {distances: 1})).distances,
    full: (points, viewdirs) => inParts('field', points, viewdirs, {distances: 1, features: model.channels, colors: 3}),
  };
}

// ------------------------------------------------------------------------------------------------ pictures

/** Let messages come in; then throw if the page wants to see something else by now. */
async function check() {
  await new Promise(resolve => setTimeout(resolve));
  if (wish) throw new Outdated();
}

/** As utils.to_uint8 rounds. value(channel, pixel) in [-1, 1]. */
function pixels(count, value) {
  const rgba = new Uint8ClampedArray(4 * count).fill(255);
  for (let i = 0; i < count; i++)
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = Math.floor((Math.min(1, Math.max(-1, value(c, i))) + 1) * 127.5 + 0.5);
  return rgba;
}

function show(wanted, kind, side, value, started) {
  const rgba = pixels(side * side, value);
  postMessage({type: 'picture', kind, id: wanted.id, side, rgba, milliseconds: performance.now() - started},
    [rgba.buffer]);
}

/** The largest side of a moving picture that is quick enough. */
function movingSide() {
  const sides = [0.25, 0.5, 0.75, 1].map(share => share * model.rays).filter(side => side % GRID === 0 && side > 2 * GRID);
  return sides.findLast(side => perRay !== null && side * side * perRay < FRAME) ?? sides[sides.length > 2 ? 1 : 0];
}

async function moving(wanted) {
  const started = performance.now(), side = movingSide(), {key, w} = await latents(wanted.state);
  const guess = surface?.key === key && surface.volume ? lookUp(surface.volume, model.radius) : null;
  const picture = await renderSparsely(fieldOf(w), side, wanted.state, model, {moving: true, features: false, guess});
  const spent = (performance.now() - started) / side ** 2;
  if (ready) perRay = perRay === null ? spent : 0.7 * perRay + 0.3 * spent;
  ready = true;
  show(wanted, 'moving', side, (c, i) => 2 * picture.colors[3 * i + c] - 1, started);
}

async function resting(wanted) {
  const started = performance.now(), side = model.rays, {key, w, wPrime} = await latents(wanted.state);
  const picture = await renderSparsely(fieldOf(w, check), side, wanted.state, model, {features: model.layers > 0});
  show(wanted, model.layers ? 'thumbnail' : 'image', side, (c, i) => 2 * picture.colors[3 * i + c] - 1, started);
  if (model.layers) {
    await check();
    const {image} = await run('decoder', {features: [picture.features, [1, model.channels, side, side]],
      w_prime: [await wPrime(), [1, model.layers, 2 * model.styleDim]]});
    const {size} = model;
    show(wanted, 'image', size, (c, i) => image.data[c * size * size + i], started);
  }
  if (surface?.key !== key) surface = {key, steps: distances(fieldOf(w).distance, model)};
}

// ------------------------------------------------------------------------------------------------ what to do next

async function surfaceStep() {
  const {value, done} = await surface.steps.next();
  if (value) surface.volume = value;
  if (value) postMessage({type: 'distances', key: surface.key, stride: value.stride, values: value.values.slice()});
  if (done) surface.steps = null;
}

/** The field's colors at points of the world, seen from the front. */
async function colors({id, points, state}) {
  const viewdirs = new Float32Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const away = [points[i], points[i + 1], points[i + 2] - 1], length = Math.hypot(...away);
    viewdirs.set(away.map(one => one / length), i);
  }
  postMessage({type: 'colors', id, colors: (await fieldOf((await latents(state)).w).full(points, viewdirs)).colors});
}

async function main() {
  await load();
  for (;;) {
    try {
      if (wish) {
        const wanted = wish;
        wish = null;
        if (wanted.moving || !ready) await moving(wanted);
        if (!wanted.moving) await resting(wanted);
        await new Promise(resolve => setTimeout(resolve));
      } else if (colorsWanted.length) {
        await colors(colorsWanted.shift());
      } else if (surface?.steps) {
        await surfaceStep();
        await new Promise(resolve => setTimeout(resolve));
      } else {
        await new Promise(resolve => { wake = resolve; });
      }
    } catch (error) {
      if (!(error instanceof Outdated)) throw error;
    }
  }
}

main().catch(error => postMessage({type: 'error', text: error.message || String(error)}));
