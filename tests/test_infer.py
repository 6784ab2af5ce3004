"""`infer`: every kind of input, many images, what is remembered, and whose failure is whose."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit import api
from refvit.errors import ConfigError, ImageError, ShapeError, WeightsError
from refvit.weights.embedded import load_embedded
from refvit.weights.store import save

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (41, 53, 3), dtype=np.uint8)
OTHER = np.full((30, 20, 3), (200, 30, 60), np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Two good images of different content, and a broken one between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "a1.png")
    (folder / "a2.png").write_bytes(b"broken")
    Image.fromarray(OTHER).save(folder / "a10.png")
    return folder


def x_of(n=1, size=32, dtype=np.float32):
    return RNG.random((n, 3, size, size)).astype(dtype)


# images in, answers out


def test_every_kind_of_one_image_gives_the_same_answer(demo, photos):
    path = photos / "a1.png"
    bgr = np.ascontiguousarray(PIXELS[:, :, ::-1])
    kinds = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path), PIXELS, bgr[:, :, ::-1]]
    expected = demo(demo.preprocess(PIXELS)[None])[0]
    for kind in kinds:
        result = refvit.infer(kind)
        assert isinstance(result, refvit.Result)
        np.testing.assert_array_equal(result.logits, expected)
        assert result.error is None
        assert result.picture.size == (53, 41)
    assert not np.array_equal(refvit.infer(bgr).logits, expected)


def test_every_kind_of_many_images_gives_an_iterator(demo, photos):
    (photos / "a2.png").unlink()
    expected = [demo.infer(PIXELS).logits, demo.infer(OTHER).logits]
    files = [photos / "a1.png", photos / "a10.png"]
    kinds = [photos, str(photos), f"{photos}/*.png", files, tuple(files), (f for f in files), np.array([str(f) for f in files])]
    kinds += [[PIXELS, OTHER], [PIXELS, str(files[1])], map(Image.open, files)]
    for kind in kinds:
        results = refvit.infer(kind)
        assert iter(results) is results
        np.testing.assert_allclose([r.logits for r in results], expected, rtol=1e-4, atol=1e-4)
    batch = refvit.infer(np.stack([PIXELS, PIXELS[::-1]]))
    assert [r.error for r in batch] == [None, None]
    assert list(refvit.infer([])) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_order_is_kept_with_failures_in_between(demo, batch_size):
    images = [np.full((8, 8 + k % 3, 3), 20 * k, np.uint8) for k in range(10)]
    alone = [demo.infer(image).logits for image in images]
    images[0], images[4], images[9] = b"", "gone.png", None
    results = list(demo.infer(images, batch_size=batch_size))
    assert [k for k, r in enumerate(results) if r.error is not None] == [0, 4, 9]
    for k, result in enumerate(results):
        if result.error is None:
            np.testing.assert_allclose(result.logits, alone[k], rtol=1e-5, atol=1e-5)
        else:
            assert isinstance(result.error, ImageError)
            assert result.provenance["model"] == demo.name
    assert "gone.png" in str(results[4].error)


def test_images_are_read_as_the_answers_are_asked_for(demo):
    asked = []

    def images():
        for k in range(100):
            asked.append(k)
            yield OTHER

    results = demo.infer(images(), batch_size=3)
    assert asked == []
    next(results)
    assert asked == [0, 1, 2]
    next(results), next(results), next(results)
    assert asked == list(range(6))
    refvit.infer(iter(asked.append, 5), demo)  # endless: not walked either


def test_images_of_different_sizes_without_a_crop(demo):
    model = refvit.load(resize=None, crop=None, enlarge=None)
    images = [OTHER, PIXELS, OTHER[:25], PIXELS[:, :50], OTHER + 1]
    for image, result in zip(images, model.infer(images, batch_size=5), strict=True):
        np.testing.assert_allclose(result.logits, model(model.preprocess(image)[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive(demo, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        demo.infer([OTHER], batch_size=batch_size)


def test_urls_need_permission(demo):
    with pytest.raises(ImageError, match="allow_url=True"):
        refvit.infer("https://example.org/cat.jpg")
    (result,) = demo.infer(["https://example.org/cat.jpg"])
    assert "allow_url=True" in str(result.error)


def test_provenance(demo, photos):
    facts = refvit.infer(photos / "a1.png").provenance
    assert facts["model"] == "mobilevit_xxs.cifar10"
    assert facts["weights_sha256"] == load_embedded("mobilevit_xxs.cifar10").sha256
    assert facts["backend"] == "numba"
    assert facts["dtype"] == "float32"
    assert facts["preprocess"] == demo.preprocess.to_dict()
    assert facts["versions"]["numpy"] == np.__version__
    json.dumps(facts)


# the cache of infer


def test_recent_models_are_kept(monkeypatch, tmp_path, xxs):
    monkeypatch.setattr(api, "_recent", type(api._recent)())
    loads = []
    load = api.load
    monkeypatch.setattr(api, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    path = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors")
    for _ in range(3):
        refvit.infer(OTHER, weights=path)
        refvit.infer(OTHER, weights=str(path))
        refvit.infer(OTHER, resize=[32, 32])
    assert len(loads) == 2
    refvit.infer(OTHER, dtype="float64")
    assert len(loads) == 3
    os.utime(path, ns=(1, 1))
    refvit.infer(OTHER, weights=path)
    assert len(loads) == 4
    for _ in range(2):  # never kept
        refvit.infer(OTHER, "mobilevit_xxs", weights=xxs, resize=32, crop=32)
    assert len(loads) == 6
    for size in range(32, 32 + 3 * api.RECENT):
        refvit.infer(OTHER, resize=size)
    assert len(api._recent) == api.RECENT


def test_a_file_that_changed_is_loaded_again(tmp_path):
    weights = load_embedded("mobilevit_xxs.cifar10")
    path = save(weights, tmp_path / "a.safetensors")
    before = refvit.infer(OTHER, weights=path)
    params = {**weights.params, "head.fc.bias": weights.params["head.fc.bias"] + np.float16(1)}
    save(dataclasses.replace(weights, params=params), path)
    after = refvit.infer(OTHER, weights=path)
    np.testing.assert_allclose(after.logits, before.logits + 1, rtol=1e-2)
    assert after.provenance["weights_sha256"] != before.provenance["weights_sha256"]


def test_a_labels_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join("abcdefghij"))
    assert refvit.infer(OTHER, labels=path).labels == tuple("abcdefghij")
    path.write_text("\n".join("klmnopqrst"))
    assert refvit.infer(OTHER, labels=path).labels == tuple("klmnopqrst")


def test_a_loaded_model_is_used_as_it_is(demo):
    assert np.array_equal(refvit.infer(OTHER, demo).logits, demo.infer(OTHER).logits)
    given = {"weights": "a", "backend": "numpy", "dtype": "float64", "device": "cpu", "threads": 2, "labels": [], "resize": 3}
    for name, value in given.items():
        with pytest.raises(ConfigError, match=f"{name} cannot be changed on a loaded model"):
            refvit.infer(OTHER, demo, **{name: value})


def test_no_crop_on_a_loaded_model_is_refused_too(demo):
    with pytest.raises(ConfigError, match="crop"):
        refvit.infer(OTHER, demo, crop=None)


# what one image, one caller or one file must not do to another


def test_an_image_the_network_cannot_take_fails_alone(monkeypatch):
    model = refvit.load(resize=None, crop=None, enlarge=None)
    monkeypatch.setattr("refvit.model.LONGEST", 100)
    long = np.zeros((3, 101, 3), np.uint8)
    results = list(model.infer([PIXELS, long, PIXELS]))
    assert [r.error is None for r in results] == [True, False, True]
    assert "<array>" in str(results[1].error) and "101" in str(results[1].error)
    with pytest.raises(ShapeError):
        model.infer(long)


def test_too_little_memory_fails_alone(demo, monkeypatch):
    def compile_graph(graph, *more):
        if graph.inputs["input"].shape[0] > 1:
            raise MemoryError
        return run(graph, *more)

    model = refvit.load()
    run = model._backend.compile_graph
    monkeypatch.setattr(model._backend, "compile_graph", compile_graph)
    assert [r.label for r in model.infer([PIXELS, OTHER])] == [demo.infer(PIXELS).label, demo.infer(OTHER).label]
    monkeypatch.setattr(model._backend, "compile_graph", lambda *_: (_ for _ in ()).throw(MemoryError()))
    results = list(refvit.load().infer([PIXELS, OTHER]))
    assert all("not enough memory" in str(r.error) for r in results)


def test_weights_are_not_shared_with_the_caller(xxs):
    state = {name: a.copy() for name, a in xxs.items()}
    model = refvit.load("mobilevit_xxs", state)
    x = x_of(1, 32)
    before = model(x)
    state["head.fc.bias"][:] += 5
    np.testing.assert_array_equal(model(x), before)


def test_the_tag_must_be_that_of_the_file(xxs, tmp_path):
    path = save(load_embedded("mobilevit_xxs.cifar10"), tmp_path / "a.safetensors")
    assert refvit.load("mobilevit_xxs.cifar10", path).name == "mobilevit_xxs.cifar10"
    with pytest.raises(WeightsError, match=r"holds the weights of mobilevit_xxs\.cifar10, not of mobilevit_xxs\.other"):
        refvit.load("mobilevit_xxs.other", path)
    with pytest.raises(WeightsError, match="the name of weights that come with refvit"):
        refvit.load("mobilevit_xxs.cifar10", xxs)


def test_a_result_keeps_a_preview_only(demo):
    large = np.random.default_rng(0).integers(0, 256, (700, 1400, 3), np.uint8)
    result = demo.infer(large)
    assert result.picture.size == (1400, 700) and result.picture.pixels.shape == (240, 480, 3)
    assert result.to_dict()["size"] == [1400, 700]
    np.testing.assert_array_equal(result.logits, demo(demo.preprocess(large)[None])[0])


def test_names_mean_the_same_with_composites_expanded(demo):
    """A kernel that computes attention whole, and the reference that shows its softmax, can be compared by name."""
    from refvit.backends.numpy import compile_graph

    x = x_of(2, 64)
    short, long = demo.graph(x.shape), demo.graph(x.shape, expand=True)
    assert set(short.names()) < set(long.names())
    ours, expanded = (compile_graph(g.with_outputs(dict(g.names())))(x) for g in (short, long))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expanded[name], err_msg=name)
