"""dataset.py: pixels, the order of the images, workers, and data sets that cannot be trained on."""
import io
import itertools
import os
import pickle
import shutil
import signal
import time
import zipfile
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_pixels import jpeg_of_scans
from torchvision.transforms import functional as F

import dataset as dataset_module
import prepare_data
from dataset import ImageDataset, Images, InfiniteSampler, make_loader, open_images
from imaging.photos import Photos
from prepare_data import prepare
from utils import UserError

COUNT = 7


def make_photos(folder, count, size=96):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i:04d}.png')
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(folder of photos, data set of them at 64 and 96 pixels)."""
    folder = tmp_path_factory.mktemp('data')
    photos = make_photos(folder / 'photos', COUNT)
    prepare(Photos(photos), folder / 'lmdb', [64, 96])
    return photos, folder / 'lmdb'


def store(path, entries):
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for item in entries.items():
            transaction.put(*item)
    return path


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def take(loader, count):
    return list(itertools.islice(loader, count))


# ---- pixels

@pytest.mark.parametrize('flip', [False, True])
def test_items(made, flip):
    """The image alone, or its thumbnail alone; torchvision computes what both should be."""
    def expected(image):
        return F.normalize(F.to_tensor(image), [0.5] * 3, [0.5] * 3)

    photos, path = made
    for index, file in enumerate(sorted(photos.iterdir())):
        original = ImageOps.mirror(Image.open(file)) if flip else Image.open(file)
        image, thumbnail = (ImageDataset(path, 96, size)[index, flip] for size in (None, 64))
        assert image.shape == (3, 96, 96) and thumbnail.shape == (3, 64, 64) and image.dtype == torch.float32
        assert image.is_contiguous() and thumbnail.is_contiguous()
        torch.testing.assert_close(image, expected(original), rtol=0, atol=3e-7)
        for size in 64, 32:
            torch.testing.assert_close(ImageDataset(path, 96, thumbnail_size=size)[index, flip],
                                       expected(original.resize((size, size), Image.Resampling.HAMMING)),
                                       rtol=0, atol=3e-7)
        assert image.min() >= -1 and image.max() <= 1
    assert torch.equal(ImageDataset(path, 96)[3], ImageDataset(path, 96)[3, False])
    assert ImageDataset(path, 96).pixels(3).dtype == torch.uint8
    with pytest.raises(IndexError):
        ImageDataset(path, 96)[COUNT]


def test_size_of_the_thumbnail_needs_no_shrinking(made):
    image, thumbnail = ImageDataset(made[1], 64)[2], ImageDataset(made[1], 64, 64)[2]
    original = Image.open(made[0] / '0002.png').resize((64, 64), Image.Resampling.LANCZOS)
    assert torch.equal(image, thumbnail)
    torch.testing.assert_close(image, F.normalize(F.to_tensor(original), [0.5] * 3, [0.5] * 3), rtol=0, atol=3e-7)


def test_thumbnails_are_computed_only_where_they_are_asked_for(made, monkeypatch):
    monkeypatch.setattr(Image.Image, 'resize', None)
    assert ImageDataset(made[1], 96)[0].shape == (3, 96, 96)
    with pytest.raises(TypeError):
        ImageDataset(made[1], 96, 64)[0]


class Stripes(Images):
    """A kind of data set that this project does not have: pictures that are computed."""
    path, size = 'stripes', 8

    def __len__(self):
        return 5

    def picture(self, index):
        return Image.new('RGB', (8, 8), (50 * index, 0, 255))

    def fingerprint(self, count=None):
        return f'{len(self) if count is None else count:016x}'


def test_another_kind_of_data_set_is_one_class():
    batches = take(make_loader(Stripes(), InfiniteSampler(5, seed=1), 5, 1), 2)
    for batch in batches:
        assert batch.shape == (5, 3, 8, 8)
        levels = (batch.mean((2, 3)) + 1) * 127.5
        assert levels[:, 0].round().sort().values.tolist() == [0, 50, 100, 150, 200]
        assert levels[:, 2].tolist() == [255] * 5


def test_fingerprints(made, tmp_path):
    """The same data made again have the same fingerprint; other photos, sizes or numbers of them another."""
    photos, path = made
    whole = ImageDataset(path, 96).fingerprint()
    prepare(Photos(photos), tmp_path / 'again', [96])
    assert ImageDataset(tmp_path / 'again', 96).fingerprint() == whole and len(whole) == 16
    others = [ImageDataset(path, 64).fingerprint(), ImageDataset(path, 96, 64).fingerprint(),
              ImageDataset(path, 96).fingerprint(COUNT - 1)]
    more = make_photos(tmp_path / 'photos', COUNT)
    Image.open(more / '0003.png').transpose(Image.Transpose.ROTATE_90).save(more / '0003.png')
    prepare(Photos(more), tmp_path / 'more', [96])
    others.append(ImageDataset(tmp_path / 'more', 96).fingerprint())
    assert len({whole, *others}) == 5
    make_photos(photos, COUNT + 3)
    prepare(Photos(photos), tmp_path / 'again', [96])
    grown = ImageDataset(tmp_path / 'again', 96)
    assert len(grown) == COUNT + 3 and grown.fingerprint() != whole and grown.fingerprint(COUNT) == whole
    for i in range(COUNT, COUNT + 3):
        (photos / f'{i:04d}.png').unlink()
    foreign = [store(tmp_path / name, {b'8-00000': png(Image.new('RGB', (8, 8), color)), b'length': b'1'})
               for name, color in (('a', 'red'), ('b', 'red'), ('c', 'blue'))]
    a, b, c = (ImageDataset(path, 8).fingerprint() for path in foreign)
    assert a == b != c


def test_data_set_of_the_original(tmp_path):
    """Image keys and `length` alone, with more digits where five do not do."""
    image = png(Image.new('RGB', (8, 8), 'red'))
    entries = {b'8-%05d' % i: b'' for i in range(100000)} | {b'8-100000': image, b'length': b'100001'}
    path = store(tmp_path / 'x', entries)
    dataset = ImageDataset(path, 8)
    assert len(dataset) == 100001
    assert dataset[100000].mean((1, 2)).tolist() == [1, -1, -1]


def test_two_of_the_same_path_and_pickling(made):
    first, second = ImageDataset(made[1], 64), ImageDataset(made[1], 96)
    assert first[1].shape[-1] == 64 and second[1].shape[-1] == 96
    assert torch.equal(ImageDataset(made[1], 64)[1], first[1])  # checked while it is open
    assert torch.equal(pickle.loads(pickle.dumps(first))[1], first[1])


# ---- order

def reference(length, seed, count):
    """The items by their definition: each epoch's permutation, one after the other."""
    sampler = InfiniteSampler(length, seed=seed)
    return [sampler[position] for position in range(count)]


def test_stream_is_a_shuffle_of_every_epoch():
    length, epochs = 100, 40
    items = reference(length, 3, epochs * length)
    orders, flips = [], []
    for epoch in range(epochs):
        part = items[epoch * length:(epoch + 1) * length]
        assert sorted(index for index, _ in part) == list(range(length))
        orders.append([index for index, _ in part])
        flips.append([flip for _, flip in sorted(part)])
    assert all(a != b for a, b in itertools.combinations(orders + [list(range(length))], 2))
    mirrored = np.array(flips)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(mirrored.size)
    assert mirrored.any(axis=0).all() and not mirrored.all(axis=0).any()  # each image is seen both ways
    assert items == reference(length, 3, epochs * length)  # a pure function
    assert items[:length] != reference(length, 4, length)
    assert not any(flip for _, flip in take(iter(InfiniteSampler(9, seed=0, flip=False)), 30))


def test_ranks_and_batches_split_the_stream():
    whole = reference(7, 0, 400)

    def steps(batch, world, start, count):
        ranks = [InfiniteSampler(7, seed=0, rank=rank, world_size=world, start=start).batches(batch)
                 for rank in range(world)]
        return [item for _ in range(count) for rank in ranks for item in next(rank)]

    for batch, world in (1, 1), (4, 1), (2, 2), (1, 4), (3, 5), (20, 2):
        assert steps(batch, world, 0, 5) == whole[:5 * batch * world]
        assert steps(batch, world, 13, 5) == whole[13:13 + 5 * batch * world]
    # resumed with other numbers of processes and images
    assert steps(2, 2, 0, 6) + steps(3, 1, 24, 5) == whole[:24 + 15]


@pytest.mark.parametrize('workers', [0, 3, COUNT + 2])
def test_loader_is_the_same_with_any_number_of_workers_and_resumes(made, workers):
    dataset = ImageDataset(made[1], 96)
    items = reference(COUNT, 5, 27)
    state = torch.get_rng_state()
    batches = take(make_loader(dataset, InfiniteSampler(COUNT, seed=5), 3, workers), 4)
    batches += take(make_loader(dataset, InfiniteSampler(COUNT, seed=5, start=12), 3, workers), 5)
    assert torch.equal(torch.get_rng_state(), state)
    for step, images in enumerate(batches):
        assert images.shape == (3, 3, 96, 96)
        assert all(torch.equal(images[i], dataset[item]) for i, item in enumerate(items[3 * step:3 * step + 3]))


def test_loader_of_thumbnails_and_more_images_a_batch_than_there_are(made):
    dataset = ImageDataset(made[1], 96, 64)
    batch = next(make_loader(dataset, InfiniteSampler(COUNT, seed=0), 2 * COUNT, 2))
    assert batch.shape == (2 * COUNT, 3, 64, 64)
    assert Counter(index for index, _ in reference(COUNT, 0, 2 * COUNT)) == dict.fromkeys(range(COUNT), 2)


@pytest.mark.parametrize('workers', [1, 3])
def test_new_workers_take_the_place_of_dead_ones(made, workers, tmp_path, capfd):
    """Nobody is lost and nobody comes twice."""
    deadly = InfiniteSampler(COUNT, seed=5)[7][0]  # in the first batch of the second process

    class Deadly(ImageDataset):
        def __getitem__(self, item):
            if item[0] == deadly and not (tmp_path / 'killed').exists():
                (tmp_path / 'killed').touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(item)

    loader = make_loader(Deadly(made[1], 96), InfiniteSampler(COUNT, seed=5, rank=1, world_size=2, start=4), 2, workers)
    batches = take(loader, 6)
    loader.close()
    expected = take(make_loader(ImageDataset(made[1], 96),
                                InfiniteSampler(COUNT, seed=5, rank=1, world_size=2, start=4), 2, 0), 6)
    assert all(torch.equal(*pair) for pair in zip(batches, expected, strict=True)) and (tmp_path / 'killed').exists()
    assert 'a worker process died' in (error := capfd.readouterr().err) and 'New workers go on.' in error


def test_deaths_without_an_end_stop(made, monkeypatch):
    monkeypatch.setattr(dataset_module, 'RESTARTS', 1)
    monkeypatch.setattr(ImageDataset, '__getitem__', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match='a worker process died .*--num_workers 0'):
        next(make_loader(ImageDataset(made[1], 96), InfiniteSampler(COUNT, seed=0), 2, 1))


# ---- while it grows

def test_reading_while_prepare_data_adds(tmp_path):
    photos, path = make_photos(tmp_path / 'photos', 2), tmp_path / 'lmdb'
    prepare(Photos(photos), path, [64])
    make_photos(photos, 28)
    opened = get_context('fork').Event()

    def add():
        opened.wait()
        prepare_data.COMMIT_SECONDS = 0
        prepare(Photos(photos), path, [64, 512])  # far beyond the map that is opened below

    process = get_context('fork').Process(target=add)
    process.start()
    dataset = ImageDataset(path, 64)
    before = dataset[1]
    opened.set()
    while process.is_alive():
        assert torch.equal(dataset[1], before)
        time.sleep(0.005)
    process.join()
    assert process.exitcode == 0 and (path / 'data.mdb').stat().st_size > 11 << 20  # lmdb maps 10 MiB at least
    assert torch.equal(dataset[1], before) and len(dataset) == 2
    assert len(ImageDataset(path, 512)) == 28


# ---- data sets of other programs

@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'PNG'])
def test_images_of_other_formats_under_the_same_keys(tmp_path, kind):
    """As stylegan2-pytorch stores them."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    path = store(tmp_path / 'x', {b'16-%05d' % i: buffer.getvalue() for i in range(12)} | {b'length': b'12'})
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert('RGB'))
    np.testing.assert_array_equal(ImageDataset(path, 16).pixels(3).permute(1, 2, 0).numpy(), expected)
    assert open_images(path, 8)[0].shape == (3, 8, 8)


def test_images_that_prepare_data_would_not_have_stored_as_they_are(tmp_path):
    """Gray of 16 bits was white, and transparent red was red."""
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    red = Image.new('RGBA', (16, 16), (255, 0, 0, 0))
    gray = Image.fromarray((ramp >> 8).astype(np.uint8))
    palette = Image.new('RGB', (16, 16), 'red').convert('P')
    images = [Image.fromarray(ramp), red, gray, palette]
    path = store(tmp_path / 'x', {b'16-%05d' % i: png(image) for i, image in enumerate(images)} | {b'length': b'4'})
    data = ImageDataset(path, 16)
    for index, expected in enumerate((gray, Image.new('RGB', (16, 16), 'white'), gray, palette)):
        np.testing.assert_array_equal(data.picture(index), expected.convert('RGB'))
    path = store(tmp_path / 'y', {b'16-00000': jpeg_of_scans(101), b'length': b'1'})
    with pytest.raises(UserError, match='image 16-00000 is broken'):
        ImageDataset(path, 16).picture(0)


def test_an_image_of_another_size_is_not_decoded(tmp_path, monkeypatch):
    """A small file can be an enormous picture."""
    buffer = io.BytesIO()
    Image.new('RGB', (3000, 3000)).save(buffer, 'PNG')
    path = store(tmp_path / 'x', {b'16-%05d' % i: buffer.getvalue() for i in range(2)} | {b'length': b'2'})
    monkeypatch.setattr(Image.Image, 'convert', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(UserError, match='is 3000x3000 pixels; make the data set again'):
        ImageDataset(path, 16).pixels(1)


# ---- what cannot be trained on

def refused(path, size=96):
    try:
        ImageDataset(path, size)
        pytest.fail('no error')
    except UserError as error:  # pytest.raises would keep the frames, and these the LMDB open
        sentence = str(error)
    assert '\n' not in sentence and sentence.endswith('.') and str(path) in sentence
    return sentence


def test_what_is_no_data_set(made, tmp_path):
    photos, path = made
    assert 'does not exist' in refused(tmp_path / 'gone')
    assert f'"python prepare_data.py --out_path {tmp_path}/gone --size 96 PHOTOS"' in refused(tmp_path / 'gone')
    assert 'no data.mdb' in refused(tmp_path)
    (tmp_path / 'a.txt').write_text('text')
    assert 'no data.mdb' in refused(tmp_path) and 'no data.mdb' in refused(tmp_path / 'a.txt')
    out = f'{photos}_lmdb'
    command = f'"python prepare_data.py --out_path {out} --size 96 {photos}" and give {out} instead.'
    assert 'holds photos and is no data set yet' in refused(photos) and refused(photos).endswith(command)
    with zipfile.ZipFile(tmp_path / 'my cats.zip', 'w') as archive:
        archive.write(photos / '0000.png', 'class/0000.png')
    command = f"--out_path '{tmp_path}/my cats_lmdb' --size 96 '{tmp_path}/my cats.zip'"
    assert command in refused(tmp_path / 'my cats.zip')
    assert "an LMDB of something else (at the key b'key')" in refused(store(tmp_path / 'foreign', {b'key': b'value'}))
    (tmp_path / 'junk').mkdir()
    (tmp_path / 'junk' / 'data.mdb').write_text('junk' * 5000)
    assert 'cannot be opened' in refused(tmp_path / 'junk')
    assert len(ImageDataset(path, 96)) == COUNT


def test_missing_and_unfinished_sizes(made, tmp_path):
    assert f'has none of its {COUNT} images at size 128' in refused(made[1], 128)
    assert 'there (64)' in refused(made[1], 128) and '--size 128 PHOTOS"' in refused(made[1], 128)
    image = png(Image.new('RGB', (8, 8)))
    path = store(tmp_path / 'x', {b'8-%05d' % i: image for i in range(3)} | {b'4-00001': image, b'16-00000': image})
    assert 'is unfinished' in refused(path, 8)  # no length
    store(path, {b'length': b'3'})
    assert 'has 1 of its 3 images at size 16' in refused(path, 16) and 'there (8)' in refused(path, 4)
    store(path, {b'length': b'three'})
    assert 'is damaged' in refused(path, 8)
    odd = store(tmp_path / 'odd', {b'100-00000': image, b'length': b'1'})
    assert 'there (none that a model can have)' in refused(odd, 128)
    store(path, {b'length': b'-3'})
    assert 'is damaged' in refused(path, 8)
    store(path, {b'length': b'0'})
    assert 'is unfinished' in refused(path, 8)


def test_cut_short_files(made, tmp_path):
    """In a process each: where they are not noticed, the end is SIGBUS."""
    whole = (made[1] / 'data.mdb').stat().st_size
    for size in 0, 10, 4096, 8192, whole // 3, whole // 2, whole - 4096, whole - 1:
        path = tmp_path / str(size)
        shutil.copytree(made[1], path)
        os.truncate(path / 'data.mdb', size)

        def check(path=path, size=size):
            sentence = refused(path)
            assert ('cannot be opened' if size < 8192 else 'is cut short') in sentence

        process = get_context('fork').Process(target=check)
        process.start()
        process.join()
        assert process.exitcode == 0, f'{size} of {whole} bytes'


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_images_are_named(tmp_path, workers):
    good = png(Image.new('RGB', (8, 8)))
    for name, value, message in (('cut', good[:40], 'is broken ('), ('text', b'text', 'is broken ('),
                                 ('empty', b'', 'is broken ('), ('big', png(Image.new('RGB', (9, 8))), 'is 9x8 pix')):
        path = store(tmp_path / name, {b'8-00000': good, b'8-00001': value, b'length': b'2'})
        with pytest.raises(UserError) as caught:
            take(make_loader(ImageDataset(path, 8), InfiniteSampler(2, seed=0), 2, workers), 1)
        assert message in str(caught.value) and str(caught.value).startswith(f'{path}: image 8-00001 ')
        assert '\n' not in str(caught.value) and 'Traceback' not in str(caught.value)


def test_cats(tmp_path):
    """Real photos: a thumbnail is close to what shrinking the photo gives."""
    cats = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'afhq_cat_256.zip'
    if not cats.exists():
        pytest.skip('needs the photos in ../shared')
    with zipfile.ZipFile(cats) as archive:
        for name in [name for name in archive.namelist() if name.endswith('.webp')][:6]:
            archive.extract(name, tmp_path / 'cats')
    photos = Photos(tmp_path / 'cats')
    prepare(photos, tmp_path / 'lmdb', [64, 256])
    full, thumbnails, small = (ImageDataset(tmp_path / 'lmdb', *sizes) for sizes in ((256,), (256, 64), (64,)))
    for i, name in enumerate(photos.files):
        photo = F.to_tensor(Image.open(tmp_path / 'cats' / name).convert('RGB')) * 2 - 1
        torch.testing.assert_close(full[i], photo, rtol=0, atol=3e-7)  # stored without loss
        assert (thumbnails[i] - small[i]).abs().mean() < 0.05  # Hamming against Lanczos
