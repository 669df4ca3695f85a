// Marching cubes (Lorensen and Cline 1987). The table of its 256 cases is made here, by a rule instead of by hand: on
// each face of a cube the surface cuts off each run of corners that lie inside. Two cubes that share a face cut it
// alike, so the surface has no holes.

// A cube's corner c lies at (c & 1, c >> 1 & 1, c >> 2 & 1). Its edges, by axis and by the corner that they begin at:
const EDGES = [];
for (let axis = 0; axis < 3; axis++)
  for (let corner = 0; corner < 8; corner++)
    if (!(corner >> axis & 1)) EDGES.push([axis, corner]);

const CASES = Array.from({length: 256}, (_, inside) => triangles(inside));

/** The triangles of one case, as edges; bit c of `inside` says whether corner c lies inside. */
function triangles(inside) {
  const next = new Map();
  for (let axis = 0; axis < 3; axis++) for (const side of [0, 1]) {
    const u = 1 << (axis + 1) % 3, v = 1 << (axis + 2) % 3, base = side << axis;
    const around = [base, base + u, base + u + v, base + v];  // counter-clockwise from outside where side is 1
    if (!side) around.reverse();
    const is = i => inside >> around[i % 4] & 1, edge = i => edgeBetween(around[i % 4], around[(i + 1) % 4]);
    for (let i = 0; i < 4; i++) {
      if (is(i) || !is(i + 1)) continue;  // the way around goes in here, and out at edge j
      let j = i + 1;
      while (is(j + 1)) j++;
      next.set(edge(i), edge(j));
    }
  }
  const found = [];
  while (next.size) {
    const loop = [next.keys().next().value];
    for (let edge = next.get(loop[0]); edge !== loop[0]; edge = next.get(edge)) loop.push(edge);
    for (const edge of loop) next.delete(edge);
    for (let i = 1; i + 1 < loop.length; i++) found.push(loop[0], loop[i], loop[i + 1]);
  }
  return found;
}

function edgeBetween(a, b) {
  const axis = Math.log2(a ^ b);
  return EDGES.findIndex(([otherAxis, corner]) => otherAxis === axis && corner === Math.min(a, b));
}

/**
 * The surface where a volume of size^3 values (x fastest) is zero; inside they are negative.
 * within(x, y, z): whether a sample may be used. Returns positions (in samples), unit normals and indices.
 */
export function marchingCubes(values, size, within = () => true) {
  const steps = [1, size, size * size], positions = [], normals = [], indices = [];
  const vertexOf = new Int32Array(3 * values.length);  // of the edge from each sample along each axis; 0: none yet
  const offsets = Array.from({length: 8}, (_, c) => (c & 1) + (c >> 1 & 1) * size + (c >> 2) * size * size);
  for (let z = 0; z + 1 < size; z++) for (let y = 0; y + 1 < size; y++) for (let x = 0; x + 1 < size; x++) {
    const at = x + size * (y + size * z);
    let inside = 0;
    for (let c = 0; c < 8; c++) if (values[at + offsets[c]] < 0) inside |= 1 << c;
    if (inside === 0 || inside === 255) continue;
    let usable = true;
    for (let c = 0; c < 8 && usable; c++) usable = within(x + (c & 1), y + (c >> 1 & 1), z + (c >> 2));
    if (!usable) continue;
    for (const edge of CASES[inside]) {
      const [axis, corner] = EDGES[edge], from = at + offsets[corner], key = 3 * from + axis;
      if (!vertexOf[key]) {
        const share = values[from] / (values[from] - values[from + steps[axis]]);
        const place = [x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2)];
        const normal = blended(gradient(values, size, place), gradient(values, size, moved(place, axis)), share);
        place[axis] += share;
        positions.push(...place);
        normals.push(...normal);
        vertexOf[key] = positions.length / 3;
      }
      indices.push(vertexOf[key] - 1);
    }
  }
  return {positions: Float32Array.from(positions), normals: Float32Array.from(normals),
    indices: Uint32Array.from(indices)};
}

function moved(place, axis) {
  return place.map((one, i) => i === axis ? one + 1 : one);
}

/** The direction in which the values grow at a sample. */
function gradient(values, size, place) {
  const at = place[0] + size * (place[1] + size * place[2]);
  return [1, size, size * size].map((step, axis) => {
    const before = place[axis] > 0 ? 1 : 0, behind = place[axis] + 1 < size ? 1 : 0;
    return (values[at + behind * step] - values[at - before * step]) / (before + behind);
  });
}

function blended(a, b, share) {
  const sum = a.map((one, i) => one + share * (b[i] - one)), length = Math.hypot(...sum) || 1;
  return sum.map(one => one / length);
}
