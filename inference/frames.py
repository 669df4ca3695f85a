"""The frames of a video: the image and the surface behind it from each camera, and their recording."""
import contextlib

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from inference import results
from inference.parallel import two_at_a_time
from inference.video_files import video_path, video_writer
from surfaces.matting import with_alpha, without_background
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import to_uint8

IMAGE_CRF, DEPTH_CRF = 10, 1  # H.264 quality of images and of surfaces, as the original has it (docs/conventions.md)


def render_frames(generator, latents, cameras, noise, opt, surfaces=True, shaped=lambda picture: picture):
    """Yield each camera's pictures, uint8 arrays (H,W,3) by the kind of their video (results.VIDEO_KINDS), or with
    --transparent (H,W,4), the last of them alpha.

    latents: Latents of one identity, or of a frame for each camera. noise: a function from a camera to the decoder's
    noise maps. surfaces: False for the image alone. shaped: gives a picture its proportions (inference/pictures.py).
    """
    renderer, (w, w_prime), still = generator.renderer, latents, len(latents.w) == 1
    with torch.no_grad():
        weights = generator.decoder.modulate(w_prime) if generator.full_pipeline and still else None  # once a video

    @torch.no_grad()
    def render_frame(i):
        camera, frame = cameras[i:i + 1], slice(0, 1) if still else slice(i, i + 1)
        rendering = generator.render(w[frame], camera)
        image = rendering.thumbnail
        if generator.full_pipeline:
            image = generator.decoder.synthesize(
                rendering.features, weights if still else generator.decoder.modulate(w_prime[frame]), noise(camera))
        if opt.inference.transparent:
            image = without_background(image, rendering.background)
        views = {'video': image[0]}
        if surfaces:
            surface = render_surface(renderer, w[frame], camera)
            shaded = shade_surface(surface.xyz[0], surface.background[0], camera, opt.video.depth_style)
            views['depth_video'] = with_alpha(shaded, surface.background) if opt.inference.transparent else shaded
        pictures = {kind: shaped(to_uint8(view)) for kind, view in views.items()}  # last: it waits for a GPU's work
        if surfaces and opt.video.side_by_side:
            pictures['side_by_side_video'] = side_by_side(pictures['video'], pictures['depth_video'])
        return pictures

    return two_at_a_time(render_frame, range(len(cameras)), w.device, len(cameras))


def side_by_side(image, surface):
    """Two pictures (H,W,3) beside each other, the lower one enlarged to the height of the other."""
    height = max(len(image), len(surface))

    def at_height(picture):
        width = round(picture.shape[1] * height / len(picture))
        return picture if len(picture) == height else np.asarray(
            Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))

    return np.concatenate([at_height(image), at_height(surface)], axis=1)


def record(frames, folder, name, camera_path, opt, bar):
    """Write the frames of what `name` calls, pictures by the kind of their video, as they come.

    camera_path: its name, from camera_paths.path_name. Stopped early, it says how many frames the videos have.
    """
    count, add, earlier = 0, {}, False
    with contextlib.ExitStack() as stack:
        try:
            for pictures in frames:
                for kind, picture in pictures.items():
                    if kind not in add:
                        path = video_path(folder, results.video_stem(kind, name, camera_path),
                                          opt.video.format)
                        earlier = earlier or path.exists()
                        crf = DEPTH_CRF if kind == 'depth_video' else IMAGE_CRF
                        add[kind] = stack.enter_context(video_writer(path, opt.video.format, opt.video.fps, crf))
                    add[kind](picture)
                count += 1
                bar.update()
        except KeyboardInterrupt:
            if count:
                names = ', and "unfinished" in their names, since there were others before' if earlier else ''
                tqdm.write(f'identity {name}: stopped; its videos have {count} of {opt.video.frames} frames{names}.')
            raise
