"""The flicker measure, on a sphere whose texture is painted on or stands still."""
import math

import torch

from camera import cameras_at
from metrics.views import View, view_difference, warp
from volume_renderer import camera_directions


def test_view_difference_of_a_textured_sphere():
    views = {}
    for name in ('painted', 'on screen'):
        pair = []
        for azimuth in (0.2, 0.3):
            camera = cameras_at(torch.tensor([[azimuth, 0.]]), 128)
            directions = camera_directions(128, camera.focal)[0] @ camera.extrinsics[0, :, :3].T
            origin = camera.extrinsics[0, :, 3]
            along, length = directions @ origin, directions.square().sum(1)
            root = along.square() - length * (1 - 0.09 ** 2)
            t = torch.where(root > 0, (-along - root.clamp(min=0).sqrt()) / length, 1.12)
            xyz = (origin + directions * t[:, None]).T.view(1, 3, 128, 128)
            mask = (root <= 0).float().view(1, 1, 128, 128)
            where = xyz if name == 'painted' else xyz - 0.1 * azimuth
            image = torch.sin(100 * where)
            image[mask.expand_as(image) > 0] = 5.  # the background must not count
            pair.append(View(image, xyz, mask, camera, 128))
        views[name] = pair
    assert view_difference(*views['painted']) < 0.01
    assert view_difference(*views['on screen']) > 0.2
    carried = warp(*views['painted'])
    assert 0.3 < carried.visible.float().mean() < (views['painted'][1].background == 0).float().mean()
    source, target = views['painted']
    assert math.isnan(view_difference(source, target._replace(background=torch.ones_like(target.background))))
