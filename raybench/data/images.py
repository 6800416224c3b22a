"""Decoding of X-rays and masks, strict: what is damaged, too large or of another kind is refused.

Pixels are taken as they are stored. No colour profile, transparency or EXIF orientation is applied,
so that an image and its masks cannot come apart.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.errors import BadImageError, DataError, StorageError, UnavailableError
from raybench.storage import Storage
from raybench.types import ChestXray, Gray, Mask, XrayRecord

MAX_PIXELS = 50_000_000
"""Above this an image is refused by its header, before memory is spent on it."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_ANIMATED = b"acTL"
_JPEG_NO_FRAME = (0xC4, 0xC8, 0xCC)
_FOUND_SHOWN = 6
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (8, b"WEBP", "a WebP"),
    (128, b"DICM", "a DICOM"),
    (4, b"ftyp", "an AVIF or HEIF"),
    (0, b"\0\0\0\x0cjP", "a JPEG 2000"),
    (0, b"\x1f\x8b", "a gzip (NIfTI?)"),
)
"""Other formats, told by what stands at a place of the file."""


class _DamagedError(Exception):
    """What is wrong with a file's bytes, before the file's name is known."""


class _Header(NamedTuple):
    height: int
    width: int
    bits: int
    body: bytes


def _png(data: bytes) -> _Header:
    """Check every chunk and drop those that do not hold pixels (profiles, gamma, text)."""
    kept, offset, kind = [_PNG], len(_PNG), b""
    while kind != b"IEND":
        if offset + 12 > len(data):
            raise _DamagedError("the PNG file is cut short")
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        end = offset + 12 + length
        if end > len(data):
            raise _DamagedError("the PNG file is cut short")
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[offset + 4 : end - 4]) != expected:
            raise _DamagedError("the PNG file is damaged (a checksum does not match)")
        if kind == _PNG_ANIMATED:
            raise _DamagedError("expected one image, found an animated PNG: export the frame")
        if kind in _PNG_KEPT:
            kept.append(data[offset:end])
        offset = end
    if len(kept[1]) != 25 or kept[1][4:8] != b"IHDR":
        raise _DamagedError("the PNG file has no header")
    width, height, bits = struct.unpack_from(">IIB", kept[1], 8)
    return _Header(height, width, bits, b"".join(kept))


def _jpeg(data: bytes) -> _Header:
    """Find the frame header, and the end mark that a file cut short lacks."""
    offset = 2
    while offset + 9 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:
            offset += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _JPEG_NO_FRAME:
            bits, height, width = struct.unpack_from(">BHH", data, offset + 4)
            if data.find(b"\xff\xd9", offset) < 0:
                raise _DamagedError("the JPEG file is cut short")
            if data[offset + 9 : offset + 10] == b"\x04":  # inverted or not: nothing in it says
                raise _DamagedError("expected grey or colour, found CMYK: convert it to grey first")
            return _Header(height, width, bits, data)
        (length,) = struct.unpack_from(">H", data, offset + 2)
        offset += 2 + length
    raise _DamagedError("the JPEG file has no frame header")


def _header(data: bytes) -> _Header:
    if data.startswith(_PNG):
        header = _png(data)
    elif data.startswith(_JPEG):
        header = _jpeg(data)
    else:
        raise _DamagedError(_other_kind(data))
    if header.bits > 8:
        raise _DamagedError(
            f"expected an 8-bit image, found {header.bits}-bit: convert it to 8 bits first"
        )
    if header.height * header.width == 0:
        raise _DamagedError(f"it has no pixels ({header.height} x {header.width})")
    if header.height * header.width > MAX_PIXELS:
        raise _DamagedError(
            f"expected at most {MAX_PIXELS // 1_000_000} megapixels, "
            f"found {header.height} x {header.width} pixels: make it smaller first"
        )
    return header


def _other_kind(data: bytes) -> str:
    if not data:
        return "the file is empty: expected a PNG or JPEG file"
    if data.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the image: run git lfs pull"
    for offset, mark, kind in _OTHERS:
        if data[offset : offset + len(mark)] == mark:
            return f"it is {kind} file: convert it to 8-bit PNG first"
    return "it is neither a PNG nor a JPEG file"


def _decode(data: bytes) -> Gray:
    header = _header(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(header.body, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _DamagedError("its pixels cannot be decoded") from error
    if pixels is None or pixels.dtype != np.uint8:
        raise _DamagedError("its pixels cannot be decoded")
    if pixels.shape[:2] != (header.height, header.width):
        raise _DamagedError("its pixels are not as many as its header says")
    if pixels.ndim == 3:
        channels = pixels.shape[2]
        code = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}.get(channels)
        pixels = pixels[..., 0] if code is None else cv2.cvtColor(pixels, code)
    gray: Gray = np.ascontiguousarray(pixels)
    return gray


def read_gray(storage: Storage, name: str) -> Gray:
    """Decode one 8-bit PNG or JPEG file, told by its content and not by its name.

    Args:
        storage: where the file lies.
        name: its path below the storage's root.

    A PNG file's checksums show any damage. A JPEG file has none: one that is cut short is refused,
    one with altered bytes in the middle cannot be told from a sound one.

    Returns:
        uint8 `[H, W]`, 0 to 255. Colour becomes grey (ITU-R BT.601 luma, OpenCV's conversion);
        1-, 2- and 4-bit PNG files are stretched to 0..255.

    Raises:
        BadImageError: the file is missing, damaged or cut short, of another format, deeper than
            8 bits, or larger than `MAX_PIXELS`.
    """
    try:
        storage.check_inside(name)
        return _decode(storage.read(name))
    except UnavailableError:
        raise  # nothing is wrong with the image
    except StorageError as error:
        raise BadImageError(str(error)) from error
    except _DamagedError as error:
        raise BadImageError(f"{storage.path(name)}: {error}") from error


def read_mask(storage: Storage, name: str, shape: tuple[int, int]) -> Mask:
    """Decode one binary mask.

    Args:
        storage: where the file lies.
        name: its path below the storage's root.
        shape: `(H, W)` of the image that it belongs to.

    Returns:
        bool `[H, W]`; True where the file holds 255 (or 1).

    Raises:
        BadImageError: as `read_gray`, or the mask has another size than its image, or holds values
            other than 0 and 255, or 0 and 1.
    """
    pixels = read_gray(storage, name)
    if pixels.shape != shape:
        raise BadImageError(
            f"{storage.path(name)}: expected a mask of its image's size, {shape[0]} x {shape[1]} "
            f"(height x width), found {pixels.shape[0]} x {pixels.shape[1]}"
        )
    found = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
    if not (set(found) <= {0, 255} or set(found) <= {0, 1}):
        shown = ", ".join(str(v) for v in found[:_FOUND_SHOWN])
        more = f", ... ({len(found)} values)" if len(found) > _FOUND_SHOWN else ""
        raise BadImageError(
            f"{storage.path(name)}: expected a binary mask (0 and 255, or 0 and 1), "
            f"found {shown}{more}: binarise it, and store it without loss (PNG)"
        )
    return pixels > 0


def load_files(storage: Storage, record: XrayRecord) -> ChestXray:
    """Decode the image and the masks that a record names.

    Raises:
        BadImageError: see `read_gray` and `read_mask`.
    """
    image = read_gray(storage, record.image)
    shape = (image.shape[0], image.shape[1])
    lung, infection = (
        None if name is None else read_mask(storage, name, shape)
        for name in (record.lung_mask, record.infection_mask)
    )
    return ChestXray(record, image, lung, infection)


def encode_png(array: NDArray[Any]) -> bytes:
    """A PNG file of an array.

    Args:
        array: uint8 `[H, W]` (grey), uint8 `[H, W, 3]` (RGB) or bool `[H, W]` (a mask, stored as
            0 and 255).

    Raises:
        DataError: the array is of another kind.
    """
    pixels = array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array
    colour = pixels.ndim == 3 and pixels.shape[2] == 3 and array.dtype == np.uint8
    if array.size == 0 or pixels.dtype != np.uint8 or not (pixels.ndim == 2 or colour):
        raise DataError(
            "expected uint8 [H, W], uint8 [H, W, 3] or bool [H, W] to write as PNG, "
            f"found {array.dtype} {list(array.shape)}"
        )
    done, data = cv2.imencode(".png", pixels[..., ::-1] if colour else pixels)
    if not done:
        raise DataError(f"an array of {list(array.shape)} could not be written as PNG")
    return bytes(data)
