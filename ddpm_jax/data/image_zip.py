"""A zip archive of images, read without extracting it: no file is written, wherever its names point.

An archive of unknown origin may be hostile. Names with `..` or absolute paths are refused, and so is a member that declares
more bytes than an image file has; a member with wrong sizes or checksums is a broken image.
"""

import zipfile
import zlib

from ddpm_jax.data.decode import ImageDecodeError
from ddpm_jax.data.folder_listing import EXTENSIONS, one_line
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line

MOST_BYTES = 2**28  # of one image file; 16-bit TIFF of 40 megapixels fits


class ImageZip:
    """The images of an archive, sorted by name, at any depth. Hidden files and other files are ignored.

    Attributes:
      names: names of the images, with "/".

    Raises:
      FileAccessError: the file cannot be read.
      InvalidDataError: it is not a zip archive, is truncated, or has a name or size as described above.
    """

    def __init__(self, file: str):
        try:
            self._archive = storage.open_zip(storage.as_path(file))
        except OSError as error:
            raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise InvalidDataError(f"{file} is truncated, damaged or not a zip archive: {error_line(error)}") from error
        members = {member.filename: member for member in self._archive.infolist() if _is_image(member.filename)}
        for name, member in members.items():
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0]:
                raise InvalidDataError(f"{file} has the name {one_line(name)}, which points outside of it: make the zip again")
            if member.file_size > MOST_BYTES:
                raise InvalidDataError(
                    f"{file}: {one_line(name)} declares {member.file_size:,} bytes, more than an image file has "
                    f"({MOST_BYTES:,}): it may be a zip bomb"
                )
        self._members, self.names = members, sorted(members)

    def content(self, index: int) -> bytes:
        """The bytes of the image `names[index]`. Thread-safe.

        Raises:
          ImageDecodeError: they cannot be read; the message is the reason.
        """
        try:
            with self._archive.open(self._members[self.names[index]]) as member:
                return member.read()
        except RuntimeError as error:  # zipfile's error for an encrypted member, and NotImplementedError
            raise ImageDecodeError("encrypted" if "password" in str(error) else error_line(error)) from error
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ImageDecodeError(f"damaged: {error_line(error)}") from error


def _is_image(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    is_hidden = any(part.startswith(".") and part != ".." for part in parts) or parts[0] == "__MACOSX"
    return name.lower().endswith(EXTENSIONS) and not is_hidden
