"""The signed-distance field and its volume rendering (Or-El et al., StyleSDF, CVPR 2022, sections 3.1 to 3.3).

    cameras --rays--> samples --SirenField(w)--> signed distance, color, features --density, weights--> sums along rays

A ray with origin o and direction d carries N samples p = o + t d. A FiLM-SIREN network, modulated by the latent w,
gives each sample a signed distance, a color and a feature vector; the distance becomes a density, and everything is
summed along the ray. docs/conventions.md has the axes, units and settings. Shapes in the comments: B images, H x W
pixels, R = H W rays an image, N samples a ray, P points, C channels.
"""
import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camera import Cameras
from op import cumulative_product

INITIAL_BETA = 0.1
SUPPORT = 8          # sigmoid(-8) = 3e-4: so many betas outside the surface there is next to no density
LAST_SPACING = 1e10  # the last sample of a ray reaches to infinity


# ---------------------------------------------------------------------------------------------- the field

def film_linear(in_features, out_features):
    """The linear map from a latent to FiLM gains or shifts: 0.25 x Kaiming-normal weights, PyTorch's own biases."""
    layer = nn.Linear(in_features, out_features)
    nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity='leaky_relu')
    with torch.no_grad():
        layer.weight.mul_(0.25)
    return layer


class FiLMSiren(nn.Linear):
    """sin(gain (W x + b) + shift), gain and shift from a latent (pi-GAN's FiLM-SIREN; StyleSDF, phi_i)."""

    def __init__(self, in_features, out_features, style_dim, first=False):
        super().__init__(in_features, out_features)
        bound = 1 / 3 if first else math.sqrt(6 / in_features) / 25
        nn.init.uniform_(self.weight, -bound, bound)
        self.gamma = film_linear(style_dim, out_features)
        self.beta = film_linear(style_dim, out_features)

    def gain_and_shift(self, w):
        """The gain and the shift of each channel, both (B,C), for latents w (B,style_dim)."""
        return 15 * self.gamma(w) + 30, 0.25 * self.beta(w)

    def forward(self, w, x):
        """(B,P,C) from latents w (B,style_dim) and x (B,P,in)."""
        gain, shift = self.gain_and_shift(w)
        return torch.sin(gain[:, None] * super().forward(x) + shift[:, None])


class SirenField(nn.Module):
    """Signed distance, features and color as a function of latent, position and view direction (paper, figure 2).

    depth: number of hidden layers. width: channels of each. style_dim: size of the latent w.
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

    @property
    def num_layers(self):
        """How many layers have latents: the hidden ones, and the one of the view direction."""
        return len(self.pts_linears) + 1

    def of_layers(self, w):
        """The latents (B,style_dim) of each layer, the one of the view direction last: of w (B,style_dim) the same for
        all, or of w (B,layers,style_dim) its own for each, as inverted photos have them."""
        return w.unbind(1) if w.dim() == 3 else [w] * self.num_layers

    def forward(self, w, points, viewdirs=None):
        """The field of latents w, as `of_layers` takes them, at points (B,P,3), in which near and far plane lie at -1
        and 1.

        viewdirs: (B,R,3) unit vectors, each for P / R points in a row. Returns signed distances (B,P,1), negative
        inside; features (B,P,C); colors before the sigmoid (B,P,3). The last two are None without viewdirs. With
        --no_sdf the first is a raw density.
        """
        *latents, view_latents = self.of_layers(w)
        hidden = points                                                                 # (B,P,3)
        for layer, latent in zip(self.pts_linears, latents, strict=True):
            hidden = layer(latent, hidden)                                              # (B,P,C)
        sdf = self.sigma_linear(hidden)                                                 # (B,P,1)
        if viewdirs is None:
            return sdf, None, None
        samples = points.shape[1] // max(1, viewdirs.shape[1])
        viewdirs = viewdirs.repeat_interleave(samples, dim=1)                           # (B,P,3)
        features = self.views_linears(view_latents, torch.cat([hidden, viewdirs], dim=-1))  # (B,P,C)
        return sdf, features, self.rgb_linear(features)                                 # (B,P,3)


# ---------------------------------------------------------------------------------------------- rays and samples

def draw(sampler, shape, rng=None, **kind):
    """Random numbers of `shape` (B,…) by `sampler`, torch.rand or torch.randn.

    rng: one random generator, or a list with one for each image: then an image's numbers do not depend on the rest of
    its batch. kind: device and dtype.
    """
    if isinstance(rng, list):
        return torch.cat([sampler(1, *shape[1:], generator=own, **kind) for own in rng])
    return sampler(shape, generator=rng, **kind)


class Rays(NamedTuple):
    """R rays of each of B cameras, with N samples each."""
    cameras: Cameras
    directions: Tensor  # (B,R,3) in the world, not normalized
    viewdirs: Tensor    # (B,R,3) unit vectors: what the field sees
    t: Tensor           # (B,R,N) the samples, in units of the direction

    @property
    def points(self):
        """The samples (B,R,N,3) in the world: p = o + t d."""
        origins = self.cameras.extrinsics[:, None, None, :, 3]
        return origins + self.directions[:, :, None] * self.t[..., None]


def pixel_directions(row, column, resolution, focal):
    """Ray directions (B,…,3) in the camera frame through pixels (row, column), any numbers or tensors of them (…).

    focal: (B,1,1) in pixels of an image with `resolution` of them along a side. x is right, y up, and z is -1.
    """
    row, column = torch.broadcast_tensors(row, column)
    focal = focal.view(-1, *[1] * row.dim())
    x, y = (column + 0.5 - resolution / 2) / focal, -(row + 0.5 - resolution / 2) / focal
    return torch.stack([x, y, -torch.ones_like(x)], dim=-1)


def camera_directions(resolution, focal):
    """Ray directions (B,H*W,3) in the camera frame through the pixel centers, row by row, not normalized.

    focal: (B,1,1) in pixels.
    """
    pixels = torch.arange(resolution, device=focal.device, dtype=focal.dtype)
    return pixel_directions(pixels[:, None], pixels, resolution, focal).flatten(1, 2)


def sample_depths(near, far, samples, *, offset_sampling=True, perturb=0., rays=1, rng=None):
    """Sample positions t_i along the rays, in units of the ray direction (docs/conventions.md, Samples along a ray).

    near, far: (B,1,1). Returns (B,1,N) without jitter, else (B,rays,N). offset_sampling: N equal steps that share
    one random offset a ray; otherwise stratified sampling (NeRF equation 2), each sample jittered inside its own bin.
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


# ---------------------------------------------------------------------------------------------- density and weights

class SigmoidDensity(NamedTuple):
    """The density of a signed distance (StyleSDF, K_alpha): sigmoid(-sdf / beta) / beta. The paper calls beta alpha."""
    scale: Tensor | float  # beta, the distance over which the density changes

    def value(self, sdf, rng=None):
        """Density at signed distances of any shape. It draws nothing from rng."""
        return torch.sigmoid(-sdf / self.scale) / self.scale

    @property
    def support(self):
        """The distance outside the surface from which on the density is next to nothing."""
        return SUPPORT * self.scale


class SoftplusDensity(NamedTuple):
    """The density of a raw number: softplus(raw + noise), noise ~ N(0, noise_std^2) (NeRF, appendix A; --no_sdf)."""
    noise_std: float = 0.

    def value(self, raw, rng=None):
        """Density at raw numbers (B,…); rng as for `draw`."""
        if self.noise_std > 0:
            raw = raw + self.noise_std * draw(torch.randn, raw.shape, rng, device=raw.device)
        return F.softplus(raw)

    support = None  # a raw number is no distance, so none says that there is no density


def ray_weights(density, spacing, force_background=False):
    """Weights of the samples of a ray (StyleSDF, C(r), by NeRF's quadrature).

    density, spacing: (…,N). The weight is alpha times the transmittance before the sample. force_background gives
    the last sample all that is left, so that the weights sum to one.
    """
    alpha = 1 - torch.exp(-density * spacing)                                               # (…,N)
    transmittance = cumulative_product(1 - alpha + 1e-10)                                   # (…,N) behind each sample
    weights = torch.cat([alpha[..., :1], alpha[..., 1:] * transmittance[..., :-1]], dim=-1)
    if force_background:
        weights = torch.cat([weights[..., :-1], 1 - weights[..., :-1].sum(-1, keepdim=True)], dim=-1)
    return weights


def integrate(weights, values):
    """Weighted sums (B,R,C) over each ray (StyleSDF, C(r) and F(r)); weights (B,R,N), values (B,R,N,C)."""
    return (weights[..., None, :] @ values)[..., 0, :]


# ---------------------------------------------------------------------------------------------- the renderer

class Wanted(NamedTuple):
    """What a rendering is to hold beside xyz and background."""
    color: bool
    features: bool
    sdf: bool
    eikonal: bool


class Rendering(NamedTuple):
    """What a rendering holds; None where it was not asked for."""
    thumbnail: Tensor | None  # (B,3,H,W) color in [-1, 1]
    features: Tensor | None   # (B,C,H,W) input of the decoder
    xyz: Tensor               # (B,3,H,W) expected surface point in the world
    background: Tensor        # (B,1,H,W) weight of the last sample: probability of background
    sdf: Tensor | None        # (B,H,W,N,1)
    eikonal: Tensor | None    # (B,H,W,N,3) gradient of the sdf by the (unscaled) sample positions

    def as_images(self, resolution):
        """The same from values that lie ray by ray: (B,R,C), and sdf and eikonal (B,R,N,C)."""
        return Rendering(*(x if x is None else x.transpose(1, 2).unflatten(2, (-1, resolution)) for x in self[:4]),
                         *(x if x is None else x.unflatten(1, (-1, resolution)) for x in self[4:]))

    @staticmethod
    def joined(renderings, dim=0):
        """Several as one, side by side along an axis: by default more images."""
        return renderings[0] if len(renderings) == 1 else Rendering(*(
            None if values[0] is None else torch.cat(values, dim) for values in zip(*renderings, strict=True)))


class VolumeRenderer(nn.Module):
    """Renders a field into thumbnails, features, surface points and signed distances (paper, section 3.2).

    Arguments are the flags of the same names: resolution is renderer_spatial_output_dim, samples N_samples; sdf,
    z_normalize and offset_sampling are the opposites of --no_sdf, --no_z_normalize and --no_offset_sampling. op/ has
    subclasses that give the same faster.
    """

    def __init__(
        self,
        style_dim=256,           # size of the latent w
        resolution=64,           # rays along an image side
        samples=24,              # samples a ray
        depth=8,                 # hidden layers of the field
        width=256,               # channels of each, and features
        *,
        sdf=True,                # the field's first output is a signed distance, not a raw density
        z_normalize=True,        # the field sees points in units of half the distance from near to far
        static_viewdirs=False,   # view directions in the camera frame
        offset_sampling=True,    # one random offset for all samples of a ray
        perturb=1.,              # above 0: jitter the samples
        raw_noise_std=0.,        # noise of a raw density
        force_background=False,  # the last sample gets all that is left of a ray
    ):
        super().__init__()
        self.resolution, self.samples = resolution, samples
        self.z_normalize, self.static_viewdirs, self.offset_sampling = z_normalize, static_viewdirs, offset_sampling
        self.perturb, self.raw_noise_std, self.force_background = perturb, raw_noise_std, force_background
        self.has_sdf = sdf
        if sdf:
            self.sigmoid_beta = nn.Parameter(torch.full((1,), INITIAL_BETA))
        self.network = SirenField(depth, width, style_dim)

    @property
    def density(self):
        """What turns the field's first output into density."""
        return SigmoidDensity(self.sigmoid_beta) if self.has_sdf else SoftplusDensity(self.raw_noise_std)

    def field(self, w):
        """The field of latents w (B,style_dim): SirenField.forward as a function of points and view directions."""
        return partial(self.network, w)

    def forward(self, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False,
                eikonal=False, rng=None, decisive=None):
        """Render latents w (B,style_dim) from B cameras whose focal lengths are for `resolution`. Returns a Rendering.

        resolution, samples: rays a side and samples a ray, if other than the renderer's own. color=False leaves out
        thumbnail and features, features=False the latter alone. decisive: a function of distances (1,H,W,N,1), of
        how far off they may be, and of the distance within which they count as near zero, to the index (P,3) of samples
        whose distances must be exact; here all are, but a subclass may interpolate.
        """
        resolution, samples = resolution or self.resolution, samples or self.samples
        rays = self.rays(cameras, resolution, samples, offset_sampling=self.offset_sampling, perturb=self.perturb,
                         rng=rng)
        wanted = Wanted(color, color and features, sdf, eikonal)
        return self.march(self.field(w), rays, wanted, rng).as_images(resolution)

    def rays(self, cameras, resolution, samples, *, offset_sampling, perturb, rng=None):
        """The Rays through all pixels of cameras whose focal lengths are for `resolution`. See `sample_depths`."""
        directions, viewdirs = self.directions(camera_directions(resolution, cameras.focal), cameras)
        t = sample_depths(cameras.near, cameras.far, samples, offset_sampling=offset_sampling, perturb=perturb,
                          rays=resolution ** 2, rng=rng)
        return Rays(cameras, directions, viewdirs, t.expand(-1, resolution ** 2, -1))

    def directions(self, local, cameras):
        """Directions (B,…,3) of rays in the world, and unit ones for the field, from `local` in the camera frame."""
        rotation = cameras.extrinsics[:, :, :3].transpose(1, 2)
        directions = (local.flatten(1, -2) @ rotation).view_as(local)
        return directions, F.normalize(local if self.static_viewdirs else directions, dim=-1)

    def march(self, field, rays, wanted, rng=None):
        """Evaluate and integrate Rays. Returns a Rendering that lies ray by ray (see Rendering.as_images)."""
        points = rays.points                                                                # (B,R,N,3)
        raw, features, logits, slope = self.evaluate(
            field, points, rays.viewdirs if wanted.color else None, rays.cameras, wanted.eikonal)
        weights = self.weights(raw[..., 0], rays.directions, rays.t, rng)                   # (B,R,N)
        return Rendering(
            thumbnail=2 * integrate(weights, torch.sigmoid(logits)) - 1 if wanted.color else None,
            features=integrate(weights, features) if wanted.features else None,
            xyz=integrate(weights, points),
            background=weights[..., -1:],
            sdf=raw if wanted.sdf else None, eikonal=slope)

    def evaluate(self, field, points, viewdirs, cameras, eikonal=False):
        """The field at world points (B,R,N,3) of rays that it sees along viewdirs (B,R,3), or None.

        Returns raw (B,R,N,1), features (B,R,N,C), color logits (B,R,N,3), which are None without viewdirs, and with
        `eikonal` the gradient (B,R,N,3) of raw by the points, else None.
        """
        differentiable, slope = torch.is_grad_enabled(), None
        with torch.set_grad_enabled(differentiable or eikonal):
            points = points.requires_grad_() if eikonal else points
            values = field(self.scale(points, cameras).flatten(1, 2), viewdirs)             # (B,P,…)
            if eikonal:
                slope, = torch.autograd.grad(values[0].sum(), points, create_graph=differentiable)
        return *(x if x is None else x.unflatten(1, points.shape[1:3]) for x in values), slope

    def weights(self, raw, directions, t, rng=None):
        """Weights (B,R,N) of the samples t (B,R,N) of rays along `directions` (B,R,3) from the field's output."""
        spacing = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], LAST_SPACING)], dim=-1)
        return ray_weights(self.density.value(raw, rng), spacing * directions.norm(dim=-1, keepdim=True),
                           self.force_background)

    def scale(self, points, cameras):
        """World points (B,…,3) in the field's own units: the near and far planes at about -1 and 1."""
        if not self.z_normalize:
            return points
        extent = (cameras.far - cameras.near).view(-1, *[1] * (points.dim() - 1))
        return points * (2 / extent)

    def evaluate_at(self, field, points, viewdirs, cameras):
        """Distances (P,), features (P,C) and color logits (P,3) at world points (P,3) seen along unit viewdirs (P,3).

        field: of one latent, see `field`. cameras: one camera, for the scale of the points.
        """
        raw, features, logits = field(self.scale(points[None], cameras), viewdirs[None])
        return raw[0, :, 0], features[0], logits[0]

    def sdf_at(self, field, points, cameras):
        """Signed distances (P,) at world points (P,3); arguments as for `evaluate_at`."""
        return field(self.scale(points[None], cameras))[0][0, :, 0]

    def color_at(self, w, points, viewdirs, cameras):
        """The field's own color (P,3) in [0, 1] of one latent w (1,style_dim); arguments as for `evaluate_at`."""
        return torch.sigmoid(self.evaluate_at(self.field(w), points, viewdirs, cameras)[2])

    def stratified_sdf(self, w, cameras, rng=None, *, resolution=None):
        """Signed distances (B,P,1) at stratified points (B,P,3) of the cameras' rays, and those points, in the world.

        What the field is first fitted to a sphere with (losses.sphere_loss). resolution: rays a side that the cameras'
        focal lengths are for, if other than the renderer's own.
        """
        rays = self.rays(cameras, resolution or self.resolution, self.samples, offset_sampling=False, perturb=1.,
                         rng=rng)
        points = rays.points
        raw, *_ = self.evaluate(self.field(w), points, None, cameras)
        return raw.flatten(1, 2), points.flatten(1, 2)
