"""What a file says beside its pixels: how the picture is rotated; and files without all that, where it is damaged.

Metadata may be wrong in any way. None of it may lose a photo whose pixels can be decoded.
"""
import struct

from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
              5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_90}
# What the pixels need; other chunks and segments are metadata.
PNG_CHUNKS = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
WEBP_CHUNKS = {b'VP8 ', b'VP8L', b'VP8X', b'ALPH', b'ANIM', b'ANMF'}
TIFF_TAGS = {254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324,
             325, 332, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
JPEG_ADOBE = 0xEE  # the segment that tells how colors are encoded


def orientation(image):
    """The orientation, 1 to 8, that an image's EXIF or XMP tells; 1 where it tells nothing that can be understood."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's readers of EXIF raise errors of every kind for damaged blocks
        found = orientation_in(image.info.get('exif', b''))
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def orientation_in(exif):
    """The orientation in a block of EXIF bytes, read without looking at anything else in it; 1 where there is none."""
    start = max(exif.find(b'II*\0'), exif.find(b'MM\0*')) if isinstance(exif, bytes) else -1
    if start < 0:
        return 1
    block = exif[start:]
    order = '<' if block.startswith(b'II') else '>'
    try:
        first, = struct.unpack_from(order + 'I', block, 4)
        count, = struct.unpack_from(order + 'H', block, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, number_type, _, value = struct.unpack_from(order + 'HHIH', block, entry)
            if tag == ORIENTATION and number_type == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def upright(image, orientation):
    """The image as its orientation says that it should be seen."""
    return image.transpose(TRANSPOSED[orientation]) if orientation in TRANSPOSED else image


def without_metadata(data):
    """(bytes of the same picture without metadata, the EXIF block that was left out); (None, b'') for other formats."""
    try:
        if data.startswith(b'\xff\xd8'):
            return _bare_jpeg(data)
        if data.startswith(b'\x89PNG\r\n\x1a\n'):
            return _bare_png(data)
        if data.startswith((b'II*\0', b'MM\0*')):
            return _bare_tiff(data), data
        if data.startswith(b'RIFF') and data[8:12] == b'WEBP':
            return _bare_webp(data)
    except (struct.error, IndexError):
        pass
    return None, b''


def _bare_jpeg(data):
    kept, exif, position = [data[:2]], b'', 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a byte that fills up
            position += 1
            continue
        if marker == 0xDA:  # the pixels begin, and go on to the end
            return b''.join([*kept, data[position:]]), exif
        length, = struct.unpack_from('>H', data, position + 2)
        segment = data[position:position + 2 + length]
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == JPEG_ADOBE:
            kept.append(segment)
        elif segment[4:8] == b'Exif':
            exif = exif or segment[4:]
        position += 2 + length
    return None, exif


def _bare_png(data):
    kept, exif, position = [data[:8]], b'', 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from('>I4s', data, position)
        if name in PNG_CHUNKS:
            kept.append(data[position:position + 12 + length])
        elif name == b'eXIf':
            exif = data[position + 8:position + 8 + length]
        position += 12 + length
    return b''.join(kept), exif


def _bare_webp(data):
    kept, exif, position = [], b'', 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from('<4sI', data, position)
        end = position + 8 + length + length % 2
        if name == b'VP8X':  # its flags announce profile, EXIF and XMP, which are left out
            kept.append(data[position:position + 8] + bytes([data[position + 8] & ~0b101100]) + data[position + 9:end])
        elif name in WEBP_CHUNKS:
            kept.append(data[position:end])
        elif name == b'EXIF':
            exif = data[position + 8:position + 8 + length]
        position = end
    body = b'WEBP' + b''.join(kept)
    return b'RIFF' + struct.pack('<I', len(body)) + body, exif


def _bare_tiff(data):
    order = '<' if data.startswith(b'II') else '>'
    first, = struct.unpack_from(order + 'I', data, 4)
    count, = struct.unpack_from(order + 'H', data, first)
    entries = [data[place:place + 12] for place in range(first + 2, first + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if struct.unpack_from(order + 'H', entry)[0] in TIFF_TAGS]
    body = data + b'\0' * (len(data) % 2)
    return (body[:4] + struct.pack(order + 'I', len(body)) + body[8:] + struct.pack(order + 'H', len(kept)) +
            b''.join(kept) + bytes(4))
