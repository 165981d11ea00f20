"""Data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

CHUNK = 4096


def load_prepared(
    name: str, split: str, data_dir: str | os.PathLike | None
) -> tuple[UInt8[np.ndarray, "n height width channels"], Int32[np.ndarray, " n"]]:
    """Decodes one split of a prepared data set; arguments as in `jnode.data.load`."""
    folder = _folder(data_dir)
    # Looked for first: TFDS would try the network, for minutes, and fail obscurely.
    prepared = [
        info.parent
        for info in folder.glob(f"{name}/*/dataset_info.json")
        if any(info.parent.glob(f"{name}-{split}.array_record*"))
    ]
    if not prepared:
        raise FileNotFoundError(
            f"{name} ({split}) is not prepared in {folder}: prepare it, where there is "
            f'a network, with  python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{folder}', "
            f"file_format='array_record').download_and_prepare()\"  or name another "
            "folder with --data.dir or TFDS_DATA_DIR."
        )
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f'{name} needs tensorflow-datasets: pip install "jnode[data]".'
        ) from error
    builder = tfds.builder_from_directory(max(prepared))
    source = builder.as_data_source(split)
    images, labels = [], []
    for start in range(0, len(source), CHUNK):
        rows = source.__getitems__(range(start, min(start + CHUNK, len(source))))
        images.append(np.stack([row["image"] for row in rows]).astype(np.uint8))
        labels.append(np.asarray([row["label"] for row in rows], np.int32))
    return np.concatenate(images), np.concatenate(labels)


def _folder(data_dir: str | os.PathLike | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(data_dir or default).expanduser().resolve()
