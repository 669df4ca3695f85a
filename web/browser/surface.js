// Draws a mesh with WebGL 2, in the light and from the camera of the pictures (surfaces/shading.py, camera.py).
// While it moves it is drawn with as many pixels as take DRAWING milliseconds. Where there is no graphics card it is then
// drawn with few pixels and triangles, so that the page goes on answering. When it rests, it is drawn smoothly.
import {rotationOf} from './sparse.js';

const DRAWING = 12;
const SMALLEST = 0.35, LARGEST = 2;  // pixels of the picture to one of the page
const PAUSE = 50;                    // milliseconds between drawings that move, without a graphics card

const VERTEX = `#version 300 es
uniform mat3 rotation;   // its columns: the camera's axes in the world; the third is also its place
uniform float tangent;   // of half the field of view
in vec3 position, normal, color;
out vec3 place, outward, paint;
void main() {
  vec3 local = transpose(rotation) * (position - rotation[2]);
  float near = 0.5, far = 2.;
  place = position; outward = normal; paint = color;
  gl_Position = vec4(local.xy / tangent, (-local.z * (far + near) - 2. * far * near) / (far - near), -local.z);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform mat3 rotation;
uniform bool painted;
in vec3 place, outward, paint;
out vec4 pixel;
void main() {  // Phong's plaster: the constants are those of surfaces/shading.py
  vec3 eye = normalize(rotation[2] - place), light = normalize(vec3(0., 1., 5.) - place), n = normalize(outward);
  if (dot(n, eye) < 0.) n = -n;
  float cosine = dot(n, light), highlight = max(0., dot(2. * cosine * n - light, eye)) * float(cosine > 0.);
  float shade = min(1., 0.1 + 0.65 * max(0., cosine) + 0.2 * pow(highlight, 64.));
  pixel = vec4(painted ? paint : vec3(shade), 1.);
}`;

export class SurfaceView {
  /** canvas: where to draw. Throws where there is no WebGL 2. */
  constructor(canvas) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext('webgl2', {antialias: false});
    if (!gl) throw new Error('no WebGL 2');
    const program = this.program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    this.uniforms = Object.fromEntries(['rotation', 'tangent', 'painted'].map(
      name => [name, gl.getUniformLocation(program, name)]));
    this.meshes = {};  // full, and light for moving where the full one takes too long
    const about = gl.getExtension('WEBGL_debug_renderer_info');
    this.software = /swiftshader|llvmpipe|software|basic render/i.test(
      about ? gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : '');
    this.scale = this.software ? SMALLEST : 1;
    this.drawn = 0;
  }

  /** Take a mesh {positions, normals, indices, colors or none}, or null to forget it. name: 'full' or 'light'. */
  take(name, mesh) {
    const {gl, program} = this, old = this.meshes[name];
    if (old) {
      old.buffers.forEach(buffer => gl.deleteBuffer(buffer));
      gl.deleteVertexArray(old.array);
    }
    delete this.meshes[name];
    if (!mesh?.indices.length) return;
    const array = gl.createVertexArray(), buffers = [];
    const filled = (target, values) => {
      buffers.push(gl.createBuffer());
      gl.bindBuffer(target, buffers.at(-1));
      gl.bufferData(target, values, gl.STATIC_DRAW);
    };
    gl.bindVertexArray(array);
    for (const [attribute, values] of Object.entries({position: mesh.positions, normal: mesh.normals, color: mesh.colors})) {
      if (!values) continue;
      const place = gl.getAttribLocation(program, attribute);
      filled(gl.ARRAY_BUFFER, values);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    filled(gl.ELEMENT_ARRAY_BUFFER, mesh.indices);
    this.meshes[name] = {array, buffers, count: mesh.indices.length, colors: Boolean(mesh.colors)};
  }

  /** Draw from a view {azimuth, elevation} in radians. painted: in the mesh's colors, if it has some. moving: quickly. */
  draw(view, tangent, painted, moving) {
    const begun = performance.now(), {gl, canvas, software, meshes} = this;
    if (moving && software && begun < this.drawn + PAUSE) return;
    this.drawn = begun;
    const mesh = (moving && this.scale < 0.7 && meshes.light) || meshes.full || meshes.light;
    const side = Math.round((canvas.clientWidth || 256) * (moving ? this.scale : software ? 1 : LARGEST));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    gl.viewport(0, 0, side, side);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!mesh) return;
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.bindVertexArray(mesh.array);
    gl.uniformMatrix3fv(this.uniforms.rotation, true, new Float32Array(rotationOf(view.azimuth, view.elevation)));
    gl.uniform1f(this.uniforms.tangent, tangent);
    gl.uniform1i(this.uniforms.painted, painted && mesh.colors ? 1 : 0);
    gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
    if (!moving || software) return;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until it is drawn
    const better = Math.sqrt(DRAWING / Math.max(1, performance.now() - begun));
    this.scale = Math.min(LARGEST, Math.max(SMALLEST, 0.5 * this.scale * (1 + better)));
  }
}
