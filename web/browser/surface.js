// Draws a mesh with WebGL 2, in the light and from the camera of the pictures (surfaces/shading.py, camera.py).
import {rotationOf} from './sparse.js';

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
    const gl = this.gl = canvas.getContext('webgl2', {antialias: true, alpha: true, preserveDrawingBuffer: true});
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
    this.count = 0;
  }

  /** Take a mesh {positions, normals, indices, colors or none}. */
  take(mesh) {
    const {gl, program} = this;
    this.mesh = mesh;
    this.count = mesh.indices.length;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    for (const [name, values] of Object.entries({position: mesh.positions, normal: mesh.normals, color: mesh.colors})) {
      const place = gl.getAttribLocation(program, name);
      if (!values) { gl.disableVertexAttribArray(place); gl.vertexAttrib3f(place, 1, 1, 1); continue; }
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer(name));
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffer('indices'));
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.indices, gl.STATIC_DRAW);
    gl.deleteVertexArray(this.array ?? null);
    this.array = array;
  }

  buffer(name) {
    this.buffers ??= {};
    return this.buffers[name] ??= this.gl.createBuffer();
  }

  /** Draw from a view {azimuth, elevation} in radians. painted: in the mesh's colors, if it has some. */
  draw(view, tangent, painted) {
    const {gl, canvas} = this, side = Math.round(canvas.clientWidth * Math.min(2, devicePixelRatio)) || 512;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    gl.viewport(0, 0, side, side);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!this.count) return;
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.bindVertexArray(this.array);
    const r = rotationOf(view.azimuth, view.elevation);
    gl.uniformMatrix3fv(this.uniforms.rotation, true, new Float32Array(r));
    gl.uniform1f(this.uniforms.tangent, tangent);
    gl.uniform1i(this.uniforms.painted, painted && this.mesh.colors ? 1 : 0);
    gl.drawElements(gl.TRIANGLES, this.count, gl.UNSIGNED_INT, 0);
  }
}
