"""imaging/photos.py: which files of a folder or zip are photos, and their bytes in any process."""
import pickle
import zipfile

from test_dataset import make_photos
from torch.utils.data import Dataset

from imaging.photos import Photos
from imaging.workers import load_in_workers


class FileBytes(Dataset):
    """Item i: the bytes of photo i."""

    def __init__(self, photos):
        self.photos, self.names = photos, list(photos.files)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.photos.read(self.names[index])


def test_a_zip_that_was_read_before_workers_start(tmp_path):
    """As evaluate.py does for its hash. Forked workers would share the place in the file, spawned ones cannot."""
    folder = Photos(make_photos(tmp_path / 'photos', 200, 24))
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as archive:
        for name in folder.files:
            archive.write(folder.path / name, name)
    photos = Photos(tmp_path / 'photos.zip')
    photos.read('0000.png')
    assert pickle.loads(pickle.dumps(photos)).read('0001.png') == folder.read('0001.png')
    results = [list(load_in_workers(FileBytes(source), workers, batch_size=None, collate_fn=lambda item: item))
               for source, workers in ((photos, 4), (folder, 0))]
    assert results[0] == results[1]
