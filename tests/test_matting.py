"""Pictures without background: sharp where the image is, whatever the field's pixels; with the surface's own colors."""
import torch
import torch.nn.functional as F

from surfaces.matting import guided, with_alpha, without_background

SIZE, COARSE = 256, 32
HAIR, SKY = torch.tensor([0.35, 0.2, 0.1]), torch.tensor([0.3, 0.6, 0.9])


def hairy():
    """(image (1,3,S,S) in [0, 1] of hairs before a sky, its true alpha (1,1,S,S), alpha at the field's pixels)."""
    y, x = torch.meshgrid(*[(torch.arange(SIZE) + 0.5) / SIZE] * 2, indexing='ij')
    angle = torch.atan2(y - 0.5, x - 0.5)
    radius = 0.25 + 0.06 * torch.sin(23 * angle) + 0.03 * torch.sin(57 * angle + 1)
    alpha = ((radius - ((x - 0.5) ** 2 + (y - 0.5) ** 2).sqrt()) * SIZE + 0.5).clamp(0, 1)[None, None]
    image = HAIR.view(1, 3, 1, 1) * alpha + SKY.view(1, 3, 1, 1) * (1 - alpha)
    noise = 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + noise).clamp(0, 1), alpha, F.interpolate(alpha, size=(COARSE, COARSE), mode='area')


def test_alpha_follows_the_edges_of_the_image():
    image, true, coarse = hairy()
    enlarged = F.interpolate(coarse, size=(SIZE, SIZE), mode='bilinear')
    error = (guided(coarse, image) - true).abs().mean()
    assert error < 0.3 * (enlarged - true).abs().mean()


def test_where_the_field_is_sure_colors_do_not_matter():
    """A patch in the sky's color in the middle of the hair stays, and one in the hair's color far away goes."""
    image, _, coarse = hairy()
    image[..., 120:136, 120:136] = SKY.view(3, 1, 1)
    image[..., :16, :16] = HAIR.view(3, 1, 1)
    alpha = guided(coarse, image)
    assert (alpha[..., 120:136, 120:136] == 1).all() and (alpha[..., :16, :16] == 0).all()


def test_colors_along_the_outline_are_the_surfaces_own():
    image, true, coarse = hairy()
    found = (without_background(2 * image - 1, 1 - coarse) + 1) / 2
    colors, alpha = found[:, :3], found[:, 3:]
    edge = (true > 0.3) & (true < 0.7) & (alpha > 0.3)
    assert edge.sum() > 100
    before = (image - HAIR.view(1, 3, 1, 1)).abs().mean(1, keepdim=True)[edge].mean()
    after = (colors - HAIR.view(1, 3, 1, 1)).abs().mean(1, keepdim=True)[edge].mean()
    assert after < 0.4 * before
    inside = (true == 1) & (alpha == 1)
    assert torch.allclose(colors[inside.expand_as(colors)], image[inside.expand_as(image)], atol=1e-2)


def test_a_picture_at_the_fields_own_size_keeps_its_alpha():
    image, true, _ = hairy()
    assert torch.allclose(without_background(2 * image - 1, 1 - true)[:, 3:], 2 * true - 1, atol=1e-6)
    shaded = with_alpha(image[0], 1 - true)
    assert shaded.shape == (4, SIZE, SIZE) and torch.allclose(shaded[3:], 2 * true[0] - 1, atol=1e-6)
