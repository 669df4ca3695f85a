// The page: what the visitor does, and what is shown. The model runs in model-worker.js, meshes come from mesh-worker.js.
//
// The document gets an event `picture` for each picture shown: detail {kind: 'moving', 'thumbnail' or 'image', side,
// milliseconds}, and an event `surface` for each surface: detail {stride, triangles}.
import {SurfaceView} from './surface.js';
import {COARSEST} from './volume.js';

const REST = 160;                       // milliseconds without a change after which the full picture is computed
const DEGREES_PER_WIDTH = 60;           // how far dragging across a picture turns the head
const STEP = 3;                         // degrees of an arrow key
const WALK_SECONDS = 5;                 // from one seed to the other
const LIMITS = {azimuth: 45, elevation: 30};
const MOST_EDIT = 3;                    // standard deviations
const EDIT = 'edit-';                   // before directions in an address: one may be called mix, as a value of the page is

const $ = id => document.getElementById(id);
const stages = {picture: $('picture').querySelector('.stage'), surface: $('surface').querySelector('.stage')};
const note = name => stages[name].querySelector('p');
const state = {};  // the values that `initial` names, from when the model is there
const worker = new Worker(new URL(`model-worker.js${location.search}`, import.meta.url), {type: 'module'});
const meshWorker = new Worker(new URL('mesh-worker.js', import.meta.url), {type: 'module'});
let model = null, rest = null, count = 0, view3d = null, mesh = null, walking = null, wanted = {id: 0};
let complete = false;  // whether there was a full picture yet

// ------------------------------------------------------------------------------------------------ state and address

function identity() {
  const {seed, other, mix, truncation, edits} = state;
  return JSON.stringify([seed, other, mix, truncation, edits]);
}

/** The values of the page whose address names none. edits: an amount for each direction of the model. */
function initial() {
  return {seed: 3, other: 8, mix: 0, truncation: Math.min(1, model.truncation), azimuth: 0, elevation: 0,
    edits: model.directions.map(() => 0)};
}

/**
 * The values that an address like #seed=3&azimuth=20&edit-shape1=1.5 asks for; numbers that are out of range are put
 * right. In links of earlier versions directions have no prefix.
 */
function addressed() {
  const values = initial(), directions = model.directions.map(one => EDIT + one.name);
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const value = Number(text), edited = directions.indexOf(directions.includes(name) ? name : EDIT + name);
    if (!text.trim() || !Number.isFinite(value)) continue;
    if (typeof values[name] === 'number') values[name] = inRange(name, value);
    else if (edited >= 0) values.edits[edited] = Math.min(MOST_EDIT, Math.max(-MOST_EDIT, value));
  }
  return values;
}

function inRange(name, value) {
  const {min, max, step} = $(name);
  const bounded = Math.min(Number(max), Math.max(Number(min), value));
  return step === '1' && name !== 'azimuth' && name !== 'elevation' ? Math.round(bounded) : bounded;
}

function writeAddress() {
  const {edits, ...others} = state, usual = initial();
  const parts = Object.entries(others).filter(
    ([name, value]) => value !== usual[name] || name === 'seed' || name === 'truncation');
  model.directions.forEach(({name}, i) => { if (edits[i]) parts.push([EDIT + name, edits[i]]); });
  history.replaceState(null, '', `#${new URLSearchParams(parts.map(([name, value]) => [name, Math.round(value * 100) / 100]))}`);
}

// ------------------------------------------------------------------------------------------------ what is shown

/** Change the state, show it at once as well as time allows, and in full when nothing changes any more. */
function change(values) {
  const before = identity();
  Object.assign(state, values);
  for (const [name, most] of Object.entries(LIMITS)) state[name] = Math.min(most, Math.max(-most, state[name]));
  if (!model) return;
  showValues();
  if (identity() !== before) {
    stages.surface.style.opacity = mesh?.key === identity() ? 1 : 0.4;  // it may still be that of the last identity
    offerSaving();
  }
  ask(true);
  drawSurface(true);
  clearTimeout(rest);
  if (!walking) rest = setTimeout(settle, REST);
}

function settle() {
  ask(false);
  drawSurface();
  writeAddress();
}

function ask(moving) {
  wanted = {id: ++count, key: identity(), moving};
  const radians = {azimuth: state.azimuth * Math.PI / 180, elevation: state.elevation * Math.PI / 180};
  worker.postMessage({type: 'view', id: count, moving, state: {...state, ...radians}});
}

function showPicture({kind, side, rgba, milliseconds}) {
  const canvas = stages.picture.querySelector('canvas');
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.getContext('2d').putImageData(new ImageData(rgba, side, side), 0, 0);
  complete ||= kind === 'image';
  note('picture').textContent = complete ? '' : 'Computing the picture …';
  $('save-picture').disabled = kind !== 'image';
  document.dispatchEvent(new CustomEvent('picture', {detail: {kind, side, milliseconds}}));
  if (walking) walking();
}

let drawing = false;
function drawSurface(moving = false) {
  if (drawing || !view3d || !mesh) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const {azimuth, elevation} = state;
    view3d.draw({azimuth: azimuth * Math.PI / 180, elevation: elevation * Math.PI / 180}, model.tangent,
      $('painted').checked, moving);
  });
}

const shown = {};
function showValues() {
  for (const name of ['seed', 'other', 'mix', 'truncation', 'azimuth', 'elevation']) {
    const input = $(name), output = input.parentElement.querySelector('output');
    if (shown[name] === state[name]) continue;
    shown[name] = state[name];
    if (input.valueAsNumber !== state[name]) input.value = state[name];  // else 07 would become 7 while it is typed
    if (output) output.textContent = name in LIMITS ? degrees(state[name]) : state[name].toFixed(2);
  }
  if (shown.edits !== state.edits) $('directions').querySelectorAll('input').forEach((input, i) => {
    input.value = state.edits[i];
    input.parentElement.querySelector('output').textContent = signed(Number(input.value));
  });
  shown.edits = state.edits;
  $('view').textContent = `azimuth ${degrees(state.azimuth)}, elevation ${degrees(state.elevation)}`;
}

const degrees = value => `${Math.round(value)}°`.replace('-', '\u2212').replace('\u22120°', '0°');
const signed = value => (value > 0 ? '+' : '') + value.toFixed(1).replace('-', '\u2212');

function problem(text) {
  $('problem').textContent = text;
  $('problem').hidden = false;
  note('picture').textContent = '';
}

// ------------------------------------------------------------------------------------------------ meshes

const answers = new Map();
let tasks = 0;

/** Have one of the workers do something; a promise of the result. */
function answer(to, message, transfer = []) {
  const id = `task ${++tasks}`;
  to.postMessage({...message, id}, transfer);
  return new Promise((resolve, reject) => answers.set(id, {resolve, reject}));
}

function answered({id, error, result}) {
  const {resolve, reject} = answers.get(id);
  answers.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
}

async function showSurface({key, stride, values}) {
  if (key !== identity()) return;
  const found = await answer(meshWorker, {task: 'mesh', values, stride, radius: model.radius, tangent: model.tangent},
    [values.buffer]);
  if (key !== identity()) return;
  mesh = {...found, key, state: {...state}};
  note('surface').textContent = mesh.indices.length ? '' : 'This identity has no surface. Try another seed.';
  stages.surface.style.opacity = 1;
  if ($('painted').checked && mesh.indices.length) await paint();
  view3d?.take('full', mesh);
  if (stride === COARSEST) view3d?.take('light', mesh);
  drawSurface();
  offerSaving();
  document.dispatchEvent(new CustomEvent('surface', {detail: {stride, triangles: mesh.indices.length / 3}}));
}

/** Whether there is a mesh of the identity that is shown. */
function savable() {
  return mesh !== null && mesh.key === identity() && mesh.indices.length > 0;
}

function offerSaving() {
  for (const kind of ['glb', 'obj']) $(`save-${kind}`).disabled = !savable();
}

/** Give a mesh the field's colors. */
async function paint(painted = mesh) {
  if (painted.colors) return;
  painted.colors = await answer(worker, {type: 'colors', points: painted.positions, state: painted.state});
}

async function saveMesh(kind) {
  const button = $(`save-${kind}`), label = button.textContent;
  button.disabled = true;
  button.textContent = 'Saving …';
  try {
    const saved = mesh;
    await paint(saved);
    const {positions, normals, indices, colors} = saved;
    download(await answer(meshWorker, {task: 'file', kind, mesh: {positions, normals, indices, colors}}),
      `seed${saved.state.seed}.${kind}`);
  } finally {
    button.textContent = label;
    button.disabled = !savable();
  }
}

function download(blob, ending) {
  const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob),
    download: `${model.name}_${ending}`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ------------------------------------------------------------------------------------------------ what is done

function turn(stage) {
  let last = null;
  stage.addEventListener('pointerdown', event => {
    if (event.button) return;
    last = [event.clientX, event.clientY];
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener('pointermove', event => {
    if (!last) return;
    const scale = DEGREES_PER_WIDTH / stage.clientWidth;
    change({azimuth: state.azimuth - (event.clientX - last[0]) * scale,
      elevation: state.elevation + (event.clientY - last[1]) * scale});
    last = [event.clientX, event.clientY];
  });
  for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, () => { last = null; });
  stage.addEventListener('keydown', event => {
    const steps = {ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP]}[event.key];
    if (steps) change({azimuth: state.azimuth + steps[0], elevation: state.elevation + steps[1]});
    else if (event.key === 'Home') change({azimuth: 0, elevation: 0});
    else return;
    event.preventDefault();
  });
  stage.addEventListener('dblclick', () => change({azimuth: 0, elevation: 0}));
}

/** Walk to the other seed and back, a step for each picture. */
function walk() {
  const stop = Boolean(walking);
  $('walk').setAttribute('aria-pressed', String(!stop));
  $('walk').textContent = stop ? 'Walk' : 'Stop';
  if (stop) {
    walking = null;
    change({});
    return;
  }
  const begun = performance.now() - Math.acos(1 - 2 * state.mix) / Math.PI * WALK_SECONDS * 1000;
  walking = () => {
    const phase = (performance.now() - begun) / WALK_SECONDS / 1000 * Math.PI;
    requestAnimationFrame(() => walking && change({mix: (1 - Math.cos(phase)) / 2}));
  };
  walking();
}

function connect() {
  turn(stages.picture);
  turn(stages.surface);
  for (const name of ['mix', 'truncation', 'azimuth', 'elevation'])
    $(name).addEventListener('input', event => change({[name]: Number(event.target.value)}));
  for (const name of ['seed', 'other']) {
    $(name).max = model.seeds - 1;
    $(name).addEventListener('input', event => {
      if (event.target.value !== '' && event.target.validity.valid) change({[name]: Number(event.target.value)});
    });
    $(name).addEventListener('change', () => { $(name).value = state[name]; });
  }
  $('another').addEventListener('click', () => change({seed: Math.floor(Math.random() * model.seeds), mix: 0}));
  $('front').addEventListener('click', () => change({azimuth: 0, elevation: 0}));
  $('walk').addEventListener('click', walk);
  $('unedit').addEventListener('click', () => change({edits: initial().edits}));
  $('painted').addEventListener('change', async () => {
    if (mesh && $('painted').checked) await paint();
    if (mesh) view3d?.take('full', mesh);
    drawSurface();
  });
  $('save-picture').addEventListener('click', () => stages.picture.querySelector('canvas').toBlob(
    blob => download(blob, 'png')));
  for (const kind of ['glb', 'obj']) $(`save-${kind}`).addEventListener('click', () => saveMesh(kind));
  new ResizeObserver(() => drawSurface()).observe(stages.surface);
  addEventListener('hashchange', () => {
    if (walking) walk();  // which would go on from where it was
    change(location.hash.includes('=') ? addressed() : {});  // else it is a place of the page (Skip to the controls)
  });
}

/** A slider for each direction of find_directions.py. */
function addDirections() {
  $('edit').hidden = !model.directions.length;
  model.directions.forEach(({name}, i) => {
    const label = document.createElement('label'), input = document.createElement('input');
    Object.assign(input, {type: 'range', min: -MOST_EDIT, max: MOST_EDIT, step: 0.1, name});
    input.addEventListener('input', () => change({edits: Object.assign([...state.edits], {[i]: Number(input.value)})}));
    label.append(`${name} `, document.createElement('output'), input);
    $('directions').append(label);
  });
}

const received = {
  model(message) {
    model = message.model;
    document.title = `${model.name} – StyleSDF`;
    document.querySelector('h1').textContent = model.name.replaceAll('_', ' ');
    $('backend').textContent = message.backend === 'webgpu' ? ' with WebGPU'
      : ` on ${message.threads === 1 ? 'one thread' : `${message.threads} threads`}`;
    addDirections();
    $('seed').max = $('other').max = model.seeds - 1;
    Object.assign(state, addressed());
    connect();
    showValues();
    ask(false);
    note('picture').textContent = 'The first picture is computed …';
    note('surface').textContent = view3d ? 'The surface follows …' : 'The 3D view needs WebGL 2, which this browser lacks.';
  },
  picture(message) {
    if (message.kind === 'moving' || message.id === wanted.id) showPicture(message);
  },
  distances: showSurface,
  colors: ({id, colors}) => answered({id, result: colors}),
  error: ({text}) => problem(`The model cannot run here: ${text}`),
};

try {
  view3d = new SurfaceView(stages.surface.querySelector('canvas'));
} catch { /* the note says so when the model is there */ }
worker.onmessage = ({data}) => received[data.type](data);
worker.onerror = event => problem(`The model cannot run here: ${event.message || 'its program did not load'}`);
meshWorker.onmessage = ({data}) => answered(data);
