"""Data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import functools
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

CHUNK = 4096


def load_tfds(
    name: str, split: str, data_dir: str | os.PathLike | None
) -> tuple[UInt8[np.ndarray, "n height width channels"], Int32[np.ndarray, " n"]]:
    """Decodes one split of a prepared data set; arguments as for `jnode.data.load`.

    **Raises:** `FileNotFoundError`, with the command that prepares it, for a set that
    is not there; `OSError` for damaged files; `ImportError` naming the extra.
    """
    # The folder is checked before TFDS is imported, which would try the network for
    # minutes and then fail obscurely.
    folder = _prepared_folder(name, split, _data_dir(data_dir))
    try:
        with _quiet_absl():
            return _read(folder, split)
    except ImportError as error:
        raise ImportError(
            f"{name} needs tensorflow-datasets and array-record ({error}): "
            'pip install "jnode[data]".'
        ) from error
    except Exception as error:  # each reader has its own kind for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise OSError(
            f"{name} ({split}) cannot be read from {folder} ({reason}): remove that "
            "folder and prepare it anew."
        ) from error


def prepare_command(name: str, data_dir: str | os.PathLike) -> str:
    """The shell command that downloads a data set and prepares it for `load`."""
    # Double quotes inside, so that a POSIX shell's single quotes hold any path.
    code = (
        "import tensorflow_datasets as tfds; "
        f'tfds.builder("{name}", data_dir={json.dumps(str(data_dir))}, '
        'file_format="array_record").download_and_prepare()'
    )
    return f"python -c {shlex.quote(code)}"


@functools.lru_cache(maxsize=2)  # decoding takes seconds
def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    # The last step of `tfds.data_source`, without the search for the data set's own
    # code, which may have another version than the files.
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]  # a decorator hides its signature
    images, labels = [], []
    for start in range(0, len(source), CHUNK):
        rows = source.__getitems__(range(start, min(start + CHUNK, len(source))))
        images.append(np.stack([row["image"] for row in rows]).astype(np.uint8))
        labels.append(np.asarray([row["label"] for row in rows], np.int32))
    found = np.concatenate(images), np.concatenate(labels)
    for array in found:
        array.setflags(write=False)
    return found


def _prepared_folder(name: str, split: str, data_dir: Path) -> Path:
    """The newest version for which all files of this split exist."""
    found = [info.parent for info in data_dir.glob(f"{name}/*/dataset_info.json")]
    found.sort(key=_version)
    complete = [folder for folder in found if _is_complete(folder, name, split)]
    if complete:
        return complete[-1]
    if found:
        # TFDS would answer the command with "Reusing dataset" and change nothing.
        problem = (
            f"{found[-1]} lacks array_record files of {name} ({split}), being "
            "incomplete or in another format: move that folder away and prepare anew"
        )
    else:
        problem = f"{name} ({split}) is not prepared in {data_dir}: prepare it"
    raise FileNotFoundError(
        f"{problem}, with tensorflow installed for this one step, by  "
        f"{prepare_command(name, data_dir)}  or name another folder by TFDS_DATA_DIR "
        "or data_dir (train.py: --data.dir, other scripts: --data-dir)."
    )


def _is_complete(folder: Path, name: str, split: str) -> bool:
    files = [f.name for f in folder.glob(f"{name}-{split}.array_record-*-of-*")]
    return bool(files) and len(files) == int(files[0].rpartition("-")[2])


def _version(folder: Path) -> tuple[int, ...]:
    """The version as numbers: 3.0.10 is newer than 3.0.9."""
    return tuple(int(part) for part in re.findall(r"\d+", folder.name))


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser().resolve()


@contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silences advice to install OpenCV, which these small images do not need."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
