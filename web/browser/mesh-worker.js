// Meshes are made and written in this worker, so that the page goes on answering.
import {marchingCubes} from './cubes.js';
import {glb, obj} from './files.js';
import {FINEST, place, seenFromFront} from './volume.js';

const work = {
  /** The surface in samples of a volume (volume.js), its positions in the world. */
  mesh({values, stride, radius, tangent}) {
    const size = (FINEST - 1) / stride + 1, at = i => place(i * stride, radius);
    const used = stride === 1 ? values : reduced(values, size, stride);
    const mesh = marchingCubes(used, size, (x, y, z) => seenFromFront(at(x), at(y), at(z), tangent));
    mesh.positions = mesh.positions.map(at);
    return [mesh, [mesh.positions.buffer, mesh.normals.buffer, mesh.indices.buffer]];
  },
  file({kind, mesh}) {
    const blob = kind === 'obj' ? obj(mesh) : glb(mesh);
    return [blob, []];
  },
};

function reduced(values, size, stride) {
  const found = new Float32Array(size ** 3);
  for (let z = 0, to = 0; z < size; z++) for (let y = 0; y < size; y++) for (let x = 0; x < size; x++, to++)
    found[to] = values[stride * (x + FINEST * (y + FINEST * z))];
  return found;
}

onmessage = ({data: {id, task, ...given}}) => {
  try {
    const [result, transfer] = work[task](given);
    postMessage({id, result}, transfer);
  } catch (error) {
    postMessage({id, error: String(error)});
  }
};
