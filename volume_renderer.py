"""The signed-distance field and its volume rendering (Or-El et al., StyleSDF, CVPR 2022, sections 3.1 to 3.3).

A ray with origin o and direction d carries N samples p = o + d t. A FiLM-SIREN network, modulated by the latent w,
gives each sample a signed distance, a color and a feature vector; the distance becomes a density and everything is
summed along the ray. Shapes in the comments: B images, H x W rays an image, R rays in a tile, N samples a ray, C width.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from op.siren import fused_field, heads

INITIAL_BETA = 0.1
# Points evaluated together without gradients. On a CPU a tile's activations stay in the cache (measured:
# docs/performance.md); on a GPU the tile only bounds memory.
TILE_POINTS = {'cpu': 4096, 'cuda': 1 << 19}
# The same with gradients. A GPU holds all points of an image of default size rather than evaluate any twice.
TRAINING_POINTS = {'cpu': 8192, 'cuda': 1 << 22}
LAST_SPACING = 1e10  # the last sample of a ray reaches to infinity


def tile_points(device):
    """How many points to evaluate together on a device."""
    return TILE_POINTS.get(device.type, TILE_POINTS['cuda'])


# ---------------------------------------------------------------------------------------------- the field

def film_linear(in_features, out_features):
    """The linear map from a latent to FiLM gains or shifts: 0.25 x Kaiming-normal weights, PyTorch's own biases."""
    layer = nn.Linear(in_features, out_features)
    nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity='leaky_relu')
    with torch.no_grad():
        layer.weight.mul_(0.25)
    return layer


class FiLMSiren(nn.Linear):
    """sin(g * (W x + b) + h) with gain g and shift h from a latent (pi-GAN's FiLM-SIREN; StyleSDF equation 1)."""

    def __init__(self, in_features, out_features, style_dim, first=False):
        super().__init__(in_features, out_features)
        bound = 1 / 3 if first else math.sqrt(6 / in_features) / 25
        nn.init.uniform_(self.weight, -bound, bound)
        self.gamma = film_linear(style_dim, out_features)
        self.beta = film_linear(style_dim, out_features)

    def fold(self, w):
        """Fold the modulation into the layer: W' (B,in,out) and b' (B,1,out), so that the layer is sin(x W' + b').

        Done once for a latent, it takes the modulation out of the work done for every point.
        """
        gain = 15 * self.gamma(w) + 30
        shift = 0.25 * self.beta(w)
        return ((gain[:, :, None] * self.weight).transpose(1, 2),
                torch.addcmul(shift, gain, self.bias)[:, None])


class SirenField(nn.Module):
    """Signed distance, color and features as a function of position, view direction and latent (paper, figure 2).

    depth: hidden layers. width: channels of each. style_dim: size of the latent w.
    """

    def __init__(self, depth=8, width=256, style_dim=256):
        super().__init__()
        self.width = width
        self.pts_linears = nn.ModuleList(
            [FiLMSiren(3, width, style_dim, first=True)]
            + [FiLMSiren(width, width, style_dim) for _ in range(depth - 1)])
        self.views_linears = FiLMSiren(width + 3, width, style_dim)
        self.rgb_linear = nn.Linear(width, 3)
        self.sigma_linear = nn.Linear(width, 1)
        bound = math.sqrt(6 / width) / 25
        for head in (self.rgb_linear, self.sigma_linear):
            nn.init.uniform_(head.weight, -bound, bound)

    def fold(self, w):
        """The field of each latent in w (B,style_dim), ready to be evaluated at points: a FoldedField."""
        return FoldedField([layer.fold(w) for layer in self.pts_linears], self.views_linears.fold(w),
                           (self.sigma_linear.weight, self.sigma_linear.bias),
                           (self.rgb_linear.weight, self.rgb_linear.bias))


class Scratch:
    """Memory that one tile after the other uses: touching fresh pages would take half as long as the work on them."""

    def __init__(self):
        self.buffers = {}

    def tensor(self, name, shape, like):
        """An uninitialized tensor of `shape`, of the kind of `like`, which the next one of this name overwrites."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = like.new_empty(size)
        return self.buffers[name][:size].view(shape)


class FoldedField(NamedTuple):
    """A SirenField with B latents folded into its weights. Points are (B,P,3), already scaled to about [-1, 1]."""
    points: list   # for each hidden layer: weight (B,in,C), bias (B,1,C)
    views: tuple   # weight (B,C+3,C), bias (B,1,C)
    sigma: tuple   # weight (1,C), bias (1,)
    rgb: tuple     # weight (3,C), bias (3,)

    def image(self, b):
        """The field of image b alone."""
        return self._replace(points=[(weight[b:b + 1], bias[b:b + 1]) for weight, bias in self.points],
                             views=tuple(tensor[b:b + 1] for tensor in self.views))

    def hidden(self, points, scratch=None):
        """Activations (B,P,C) of the last hidden layer at points (B,P,3).

        scratch: a Scratch to work in, where nothing requires gradients; its next use overwrites the result.
        """
        for i, (weight, bias) in enumerate(self.points):
            out = scratch and scratch.tensor(i % 2, (*points.shape[:2], weight.shape[2]), points)
            points = _sin(torch.baddbmm(bias, points, weight, out=out))
        return points

    def hidden_and_slope(self, points):
        """What `hidden` gives, and the gradient (B,P,3) of the SDF by the points, written out by the chain rule.

        With it the eikonal loss needs a derivative of first order only, and each sine and cosine is computed once.
        """
        cosines = []
        for weight, bias in self.points:
            points, cosine = _SinCos.apply(torch.baddbmm(bias, points, weight))
            cosines.append(cosine)
        slope = self.sigma[0]  # (1,C), then (B,P,C) and at last (B,P,3)
        for (weight, _), cosine in zip(reversed(self.points), reversed(cosines), strict=True):
            slope = torch.bmm(slope * cosine, weight.transpose(1, 2))
        return points, slope

    def sdf(self, hidden):
        """Signed distance (B,P,1): negative inside. Without an SDF (--no_sdf) the same head is a raw density."""
        return F.linear(hidden, *self.sigma)

    def features(self, hidden, viewdirs, scratch=None):
        """Features (B,P,C) from activations (B,P,C); viewdirs (B,R,3) unit vectors, one for each P / R points.

        scratch: as for `hidden`.
        """
        weight, bias = self.views
        from_view = torch.baddbmm(bias, viewdirs, weight[:, -3:])  # once a ray, not once a sample
        out = scratch and scratch.tensor('features', hidden.shape, hidden)
        from_point = torch.bmm(hidden, weight[:, :-3], out=out)
        batch, rays, width = from_view.shape
        samples = from_point.view(batch, rays, -1, width)
        return _sin(samples + from_view[:, :, None] if samples.requires_grad
                    else samples.add_(from_view[:, :, None])).view(batch, -1, width)

    def rgb_logits(self, features):
        """Color before the sigmoid (B,P,3) from features (B,P,C)."""
        return F.linear(features, *self.rgb)


def _sin(x):
    return x.sin() if x.requires_grad else x.sin_()


class _SinCos(torch.autograd.Function):
    """(sin x, cos x): each is what the other's derivative needs."""

    @staticmethod
    def forward(ctx, x):
        sine, cosine = x.sin(), x.cos()
        ctx.save_for_backward(sine, cosine)
        return sine, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_sine, d_cosine):
        sine, cosine = ctx.saved_tensors
        return (d_sine * cosine).addcmul_(d_cosine, sine, value=-1)


# ---------------------------------------------------------------------------------------------- rays and samples

def draw(sampler, shape, rng=None, **kind):
    """Random numbers of `shape` (B,…) by `sampler`, torch.rand or torch.randn.

    rng: one, or a list with one for each image: then an image's numbers do not depend on the rest of its batch.
    kind: device and dtype.
    """
    if isinstance(rng, list):
        return torch.cat([sampler(1, *shape[1:], generator=own, **kind) for own in rng])
    return sampler(shape, generator=rng, **kind)


def camera_directions(resolution, focal):
    """Ray directions (B,H*W,3) in the camera frame through the pixel centers, row by row, not normalized.

    focal: (B,1,1) in pixels. x right, y up, z = -1.
    """
    pixels = torch.arange(resolution, device=focal.device, dtype=focal.dtype)
    return pixel_directions(pixels[:, None], pixels, resolution, focal).flatten(1, 2)


def pixel_directions(row, column, resolution, focal):
    """Ray directions (B,…,3) in the camera frame through pixels (row, column), any numbers or tensors of them (…).

    focal: (B,1,1) in pixels of an image with `resolution` of them along a side.
    """
    row, column = torch.broadcast_tensors(row, column)
    focal = focal.view(-1, *[1] * row.dim())
    x, y = (column + 0.5 - resolution / 2) / focal, -(row + 0.5 - resolution / 2) / focal
    return torch.stack([x, y, -torch.ones_like(x)], dim=-1)


def sample_depths(near, far, samples, *, offset_sampling=True, perturb=0., rays=1, rng=None):
    """Sample positions t along the rays, in units of the ray direction (spec section 2, Samples along a ray).

    near, far: (B,1,1). Returns (B,1,N) without jitter, else (B,rays,N). offset_sampling: N equal steps that share
    one random offset a ray; otherwise stratified sampling, each sample jittered inside its own bin.
    """
    end = 1 - 1 / samples if offset_sampling else 1.
    steps = torch.linspace(0., end, samples, device=near.device, dtype=near.dtype)
    t = near * (1 - steps) + far * steps
    if perturb <= 0:
        return t
    if offset_sampling:
        lower, upper = t, torch.cat([t[..., 1:], far], dim=-1)
        shape = (len(t), rays, 1)
    else:
        middle = (t[..., 1:] + t[..., :-1]) / 2
        lower, upper = torch.cat([t[..., :1], middle], dim=-1), torch.cat([middle, t[..., -1:]], dim=-1)
        shape = (len(t), rays, samples)
    return lower + (upper - lower) * draw(torch.rand, shape, rng, device=t.device, dtype=t.dtype)


# ---------------------------------------------------------------------------------------------- densities and weights

def sdf_to_density(sdf, beta):
    """Density from signed distance: sigmoid(-sdf / beta) / beta (StyleSDF equation 5). beta: the sharpness."""
    return torch.sigmoid(-sdf / beta) / beta


def ray_weights(density, spacing, force_background=False):
    """Weights of the samples of a ray (NeRF's quadrature; StyleSDF equation 4).

    density, spacing: (…,N). The weight is alpha times the transmittance before the sample. force_background gives
    the last sample all that is left, so that the weights sum to one.
    """
    alpha = 1 - torch.exp(-density * spacing)
    transmittance = _CumulativeProduct.apply(1 - alpha + 1e-10)
    weights = torch.cat([alpha[..., :1], alpha[..., 1:] * transmittance[..., :-1]], dim=-1)
    if force_background:
        weights = torch.cat([weights[..., :-1], 1 - weights[..., :-1].sum(-1, keepdim=True)], dim=-1)
    return weights


class _CumulativeProduct(torch.autograd.Function):
    """torch.cumprod of positive numbers along the last axis. Its own derivative asks whether one is zero, and so makes
    the host wait for a GPU."""

    @staticmethod
    def forward(ctx, x):
        product = x.cumprod(dim=-1)
        ctx.save_for_backward(x, product)
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_product):
        x, product = ctx.saved_tensors
        return (d_product * product).flip(-1).cumsum(dim=-1).flip(-1) / x


def sphere_sdf(points, near, far, radius=0.):
    """Signed distance (…,1) of points (…,3) to the sphere that training starts from (radius 0: (far - near) / 4)."""
    return points.norm(dim=-1, keepdim=True) - (radius or (far - near) / 4)


# ---------------------------------------------------------------------------------------------- the renderer

class Rendering(NamedTuple):
    """What a rendering holds; None where it was not asked for."""
    thumbnail: Tensor | None  # (B,3,H,W) color in [-1, 1]
    features: Tensor | None   # (B,C,H,W) input of the decoder
    xyz: Tensor               # (B,3,H,W) expected surface point in the world
    background: Tensor        # (B,1,H,W) weight of the last sample: probability of background
    sdf: Tensor | None        # (B,H,W,N,1)
    eikonal: Tensor | None    # (B,H,W,N,3) gradient of the sdf by the (unscaled) sample positions


def view_directions(renderer, local, cameras):
    """Directions (B,…,3) of rays in the world, and unit ones for the field, from `local` in the camera frame."""
    rotation = cameras.extrinsics[:, :, :3].transpose(1, 2)
    directions = (local.flatten(1, -2) @ rotation).view_as(local)
    return directions, F.normalize(local if renderer.static_viewdirs else directions, dim=-1)


class VolumeRenderer(nn.Module):
    """Renders a SirenField into thumbnails, features, surface points and signed distances.

    Arguments are the flags of the same names: resolution is renderer_spatial_output_dim, samples N_samples; sdf,
    z_normalize and offset_sampling are the opposites of --no_sdf, --no_z_normalize and --no_offset_sampling.
    """

    def __init__(self, style_dim=256, resolution=64, samples=24, depth=8, width=256, *, sdf=True, z_normalize=True,
                 static_viewdirs=False, offset_sampling=True, perturb=1., raw_noise_std=0., force_background=False):
        super().__init__()
        self.resolution, self.samples = resolution, samples
        self.z_normalize, self.static_viewdirs, self.offset_sampling = z_normalize, static_viewdirs, offset_sampling
        self.perturb, self.raw_noise_std, self.force_background = perturb, raw_noise_std, force_background
        self.has_sdf = sdf
        if sdf:
            self.sigmoid_beta = nn.Parameter(torch.full((1,), INITIAL_BETA))
        self.network = SirenField(depth, width, style_dim)

    def forward(self, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False,
                eikonal=False, rng=None):
        """Render latents w (B,style_dim) from B cameras whose focal lengths are for `resolution`. Returns a Rendering.

        resolution, samples: rays a side and samples a ray, if other than the renderer's own. color=False leaves the
        view branch out altogether (surfaces need only the sdf, xyz and mask). Without gradients the rays are worked
        through in tiles, so that memory does not grow with them.
        """
        resolution, samples = resolution or self.resolution, samples or self.samples
        local = camera_directions(resolution, cameras.focal)
        directions, viewdirs = view_directions(self, local, cameras)
        t = sample_depths(cameras.near, cameras.far, samples, offset_sampling=self.offset_sampling,
                          perturb=self.perturb, rays=resolution ** 2, rng=rng)
        t = t.expand(-1, resolution ** 2, -1)
        wanted = {'color': color, 'features': color and features, 'sdf': sdf, 'eikonal': eikonal}
        field = self.network.fold(w)
        march = self._march_again if torch.is_grad_enabled() else self._march_tiles
        rays = march(field, cameras, directions, viewdirs, t, wanted, rng)

        def as_image(x):  # (B,R,C) -> (B,C,H,W)
            return None if x is None else x.transpose(1, 2).unflatten(2, (resolution, resolution))

        def as_volume(x):  # (B,R,N,C) -> (B,H,W,N,C)
            return None if x is None else x.unflatten(1, (resolution, resolution))

        return Rendering(as_image(rays['thumbnail']), as_image(rays['features']), as_image(rays['xyz']),
                         as_image(rays['background']), as_volume(rays['sdf']), as_volume(rays['eikonal']))

    def _march_tiles(self, field, cameras, directions, viewdirs, t, wanted, rng):
        """_march over one image and a tile of rays at a time."""
        batch, rays, samples = t.shape
        tile = max(1, tile_points(t.device) // samples)
        whole, scratch = {}, Scratch()
        for b in range(batch):
            image_field, camera = field.image(b), cameras[b:b + 1]
            own = rng[b:b + 1] if isinstance(rng, list) else rng
            for start in range(0, rays, tile):
                part = slice(start, start + tile)
                marched = self._march(image_field, camera, directions[b:b + 1, part], viewdirs[b:b + 1, part],
                                      t[b:b + 1, part], wanted, own, scratch)
                for name, value in marched.items():
                    if value is None:
                        whole[name] = None
                        continue
                    if name not in whole:
                        whole[name] = value.new_empty(batch, rays, *value.shape[2:])
                    whole[name][b:b + 1, part] = value
        return whole

    def _march_again(self, field, cameras, directions, viewdirs, t, wanted, rng):
        """_march with gradients, a tile of rays at a time: only what it returns is kept, the backward pass evaluates
        the tile again. On a CPU that takes no longer, since a tile stays in the cache."""
        tile = max(1, TRAINING_POINTS.get(t.device.type, TRAINING_POINTS['cuda']) // (len(t) * t.shape[2]))
        # Noise of the density would be drawn anew.
        if tile >= t.shape[1] or self.raw_noise_std > 0:
            return self._march(field, cameras, directions, viewdirs, t, wanted, rng)
        parts = [checkpoint(self._march, field, cameras, *(x[:, start:start + tile] for x in (directions, viewdirs, t)),
                            wanted, rng, use_reentrant=False, preserve_rng_state=False)
                 for start in range(0, t.shape[1], tile)]
        return {name: None if value is None else torch.cat([part[name] for part in parts], dim=1)
                for name, value in parts[0].items()}

    def _march(self, field, cameras, directions, viewdirs, t, wanted, rng, scratch=None):
        """Evaluate and integrate rays: directions, viewdirs (B,R,3), t (B,R,N). Returns a dict of (B,R,…) tensors."""
        batch, rays, samples = t.shape
        origins = cameras.extrinsics[:, None, None, :, 3]
        points = origins + directions[:, :, None] * t[..., None]  # (B,R,N,3)
        scaled, gradient = self.scale(points, cameras).flatten(1, 2), None
        if wanted['eikonal']:
            hidden, slope = field.hidden_and_slope(scaled)
            gradient = self.scale(slope.view_as(points), cameras)  # by the unscaled points: the inner derivative
            raw, features, logits = heads(field, hidden, viewdirs if wanted['color'] else None)
        else:
            raw, features, logits = fused_field(field, scaled, viewdirs if wanted['color'] else None, scratch)
        raw = raw.view(batch, rays, samples)

        weights = self.weights(raw, directions, t, rng)
        thumbnail = None
        if wanted['color']:
            color = torch.sigmoid(logits).view(batch, rays, samples, 3)
            thumbnail = 2 * _integrate(weights, color) - 1
            features = _integrate(weights, features.view(batch, rays, samples, -1)) if wanted['features'] else None
        return {'thumbnail': thumbnail, 'features': features, 'xyz': _integrate(weights, points),
                'background': weights[..., -1:], 'sdf': raw[..., None] if wanted['sdf'] else None, 'eikonal': gradient}

    def weights(self, raw, directions, t, rng=None):
        """Weights (B,R,N) of the samples t (B,R,N) of rays along `directions` (B,R,3) from the field's output."""
        spacing = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], LAST_SPACING)], dim=-1)
        return ray_weights(self.density(raw, rng), spacing * directions.norm(dim=-1, keepdim=True),
                           self.force_background)

    def scale(self, points, cameras):
        """World points (B,…,3) in the field's own units: the near and far planes at about -1 and 1."""
        if not self.z_normalize:
            return points
        depth = (cameras.far - cameras.near).view(-1, *[1] * (points.dim() - 1))
        return points * (2 / depth)

    def density(self, raw, rng=None):
        """Density from the field's first output (spec section 2): of the SDF, or softplus of a raw density."""
        if self.has_sdf:
            return sdf_to_density(raw, self.sigmoid_beta)
        if self.raw_noise_std > 0:
            raw = raw + self.raw_noise_std * draw(torch.randn, raw.shape, rng, device=raw.device)
        return F.softplus(raw)

    def evaluate_at(self, field, points, viewdirs, cameras):
        """Yield fused_field of world points (P,3), a tile at a time; the next tile overwrites features.

        field: a FoldedField of one latent. viewdirs: (P,3), or None for distances alone. cameras: one, for the scale.
        Without gradients.
        """
        scratch, tile = Scratch(), tile_points(points.device)
        for start in range(0, max(1, len(points)), tile):  # one tile of nothing, for no points
            part = slice(start, start + tile)
            yield fused_field(field, self.scale(points[None, part], cameras),
                              None if viewdirs is None else viewdirs[None, part], scratch)

    def color_at(self, w, points, viewdirs, cameras):
        """The field's own color (P,3) in [0, 1] at world points (P,3) seen along unit viewdirs (P,3), for one latent.

        cameras: one camera, for the scale of the points. Without gradients.
        """
        tiles = self.evaluate_at(self.network.fold(w), points, viewdirs, cameras)
        return torch.cat([torch.sigmoid(logits)[0] for _, _, logits in tiles])

    def sdf_at(self, field, points, cameras):
        """Signed distances (P,) at world points (P,3) of a FoldedField of one latent. cameras: one, for the scale.
        Without gradients."""
        return torch.cat([distances[0, :, 0] for distances, _, _ in self.evaluate_at(field, points, None, cameras)])

    def sphere_loss(self, w, cameras, rng=None, *, radius=0., resolution=None):
        """L1 between the field and a sphere's SDF at stratified points of the cameras' rays (spec section 3, start).

        Training begins from a sphere because a random field has no surface to improve on. radius: of the sphere, see
        sphere_sdf. resolution: rays a side that the cameras' focal lengths are for, if other than the renderer's own.
        """
        local = camera_directions(resolution or self.resolution, cameras.focal)
        directions = local @ cameras.extrinsics[:, :, :3].transpose(1, 2)
        t = sample_depths(cameras.near, cameras.far, self.samples, offset_sampling=False, perturb=1.,
                          rays=directions.shape[1], rng=rng)
        points = cameras.extrinsics[:, None, None, :, 3] + directions[:, :, None] * t[..., None]
        field = self.network.fold(w)
        sdf = field.sdf(field.hidden(self.scale(points, cameras).flatten(1, 2)))
        target = sphere_sdf(points.flatten(1, 2), cameras.near, cameras.far, radius)
        return F.l1_loss(sdf, target)


def _integrate(weights, values):
    """Weighted sums (B,R,C) over the samples of each ray: weights (B,R,N), values (B,R,N,C)."""
    return (weights[..., None, :] @ values)[..., 0, :]
