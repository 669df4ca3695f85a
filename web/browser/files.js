// Mesh files: binary glTF and Wavefront OBJ. A mesh has positions, normals, indices and perhaps colors (sRGB in [0, 1]).

/** Light from an sRGB value (IEC 61966-2-1), which is what glTF's vertex colors are. */
export function linear(value) {
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

/** A glTF 2.0 binary file (y up) as a Blob. */
export function glb({positions, normals, indices, colors}) {
  const parts = [positions, normals, ...colors ? [colors.map(linear)] : [], indices];
  const names = ['POSITION', 'NORMAL', ...colors ? ['COLOR_0'] : []], count = positions.length / 3;
  const bounds = [Infinity, -Infinity].map((start, most) => [0, 1, 2].map(axis => {
    let found = start;
    for (let i = axis; i < positions.length; i += 3)
      found = most ? Math.max(found, positions[i]) : Math.min(found, positions[i]);
    return found;
  }));
  let offset = 0;
  const views = parts.map((part, i) => {
    const view = {buffer: 0, byteOffset: offset, byteLength: part.byteLength,
      target: i === parts.length - 1 ? 34963 : 34962};
    offset += part.byteLength;
    return view;
  });
  const accessors = [...names.map((name, i) => ({bufferView: i, componentType: 5126, count, type: 'VEC3',
    ...name === 'POSITION' ? {min: bounds[0], max: bounds[1]} : {}})),
  {bufferView: names.length, componentType: 5125, count: indices.length, type: 'SCALAR'}];
  const tree = {
    asset: {version: '2.0', generator: 'StyleSDF'}, scene: 0, scenes: [{nodes: [0]}], nodes: [{mesh: 0}],
    meshes: [{primitives: [{attributes: Object.fromEntries(names.map((name, i) => [name, i])),
      indices: names.length, material: 0}]}],
    materials: [{pbrMetallicRoughness: {metallicFactor: 0, roughnessFactor: 1}, doubleSided: true}],
    buffers: [{byteLength: offset}], bufferViews: views, accessors};
  let text = JSON.stringify(tree);
  text += ' '.repeat(-new TextEncoder().encode(text).length & 3);
  const json = new TextEncoder().encode(text), head = new Uint32Array([
    0x46546C67, 2, 12 + 8 + json.length + 8 + offset, json.length, 0x4E4F534A]);
  return new Blob([head, json, new Uint32Array([offset, 0x004E4942]), ...parts], {type: 'model/gltf-binary'});
}

/** A Wavefront OBJ file as a Blob; colors stand behind the positions. */
export function obj({positions, normals, indices, colors}) {
  const lines = [], row = (name, values, i) => `${name} ${Array.from(values.subarray(3 * i, 3 * i + 3),
    value => value.toFixed(6)).join(' ')}`;
  for (let i = 0; i < positions.length / 3; i++)
    lines.push(row('v', positions, i) + (colors ? row('', colors, i) : ''));
  for (let i = 0; i < normals.length / 3; i++) lines.push(row('vn', normals, i));
  for (let i = 0; i < indices.length; i += 3)
    lines.push('f ' + [0, 1, 2].map(j => `${indices[i + j] + 1}//${indices[i + j] + 1}`).join(' '));
  return new Blob([lines.join('\n') + '\n'], {type: 'text/plain'});
}
