"""The model as a service in Replicate's form: cog.yaml names this Predictor (https://cog.run).

    cog predict -i seed=3 -i azimuth=20

STYLESDF_MODEL names the model, as --expname does elsewhere; unless it is set, the bundled demo model is served. A seed
draws the same identity as with --seeds.
"""
import os
import secrets
import tempfile

from cog import BasePredictor, Input, Path
from PIL import Image

from inference.loaded_model import load_model
from surfaces.files import save_mesh


class Predictor(BasePredictor):
    """One identity from one viewpoint: its picture, and on demand its mesh and a video around it."""

    def setup(self):
        """Load the model once."""
        self.model = load_model(os.environ.get('STYLESDF_MODEL', 'cats_demo'))

    def predict(
        self,
        seed: int | None = Input(description='Identity; empty: a random one', default=None, ge=0, le=2 ** 31),
        truncation: float = Input(description='1: the full variety, 0: the mean of all', default=0.7, ge=0, le=1),
        azimuth: float = Input(description='Degrees to the right', default=0, ge=-45, le=45),
        elevation: float = Input(description='Degrees up', default=0, ge=-30, le=30),
        mesh: bool = Input(description='Also the surface, a GLB file with the colors of the field', default=True),
        video: bool = Input(description='Also a video once around the frontal view', default=False),
        frames: int = Input(description='Frames of the video', default=50, ge=2, le=250),
    ) -> list[Path]:
        """The picture (PNG), then the mesh (GLB) and the video (MP4) that were asked for."""
        seed = secrets.randbelow(2 ** 31) if seed is None else seed
        print(f'Seed: {seed}')
        w = self.model.w_of([seed], truncation)
        folder = Path(tempfile.mkdtemp())
        files = [folder / 'image.png']
        Image.fromarray(self.model.picture(w, self.model.cameras([[azimuth, elevation]]), truncation)).save(files[0])
        if mesh and (surface := self.model.mesh(w)) is not None:
            files.append(folder / 'surface.glb')
            save_mesh(files[-1], surface)
        if video:
            files.append(self.model.video(folder / 'video.mp4', w, truncation, frames))
        return files
