"""Images to answers for segmentation, pose and detection, with seeded weights and small inputs."""

import json

import numpy as np
import pytest
from PIL import Image

import refvit
from refvit.errors import ConfigError, UnsupportedError, WeightsError
from refvit.vision import detection, joints, pose
from refvit.vision.segmentation import Views
from refvit.weights import store

RNG = np.random.default_rng(6)
PIXELS = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (50, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(golden):
    """By task, each small enough for a call of a second."""
    hrvit = golden("hrvit_b1_segformer").state()
    return {
        "segmentation": refvit.load("hrvit_b1_segformer", hrvit, resize=64, longest=200),
        "street": refvit.load("hrnet_w18_small_seg", golden("hrnet_w18_small_seg").state()),
        "pose": refvit.load("hrnet_w32_pose", golden("hrnet_w32_pose").state(), resize=(64, 64)),
        "detection": refvit.load("mobilevit_xxs_ssdlite", golden("mobilevit_xxs_ssdlite.cvnets").state(), score_threshold=0.02),
    }


def test_segmentation(models):
    model = models["segmentation"]
    result = model.infer(PIXELS)
    assert result.map.shape == (70, 90) and result.map.dtype == np.uint8
    views = Views(PIXELS, model.preprocess, model.postprocess, align_corners=False, multiple=32)
    assert views.inputs[0].shape == (3, 64, 96)  # 64 x 82, padded
    np.testing.assert_array_equal(result.map, views.label_map([model(views.inputs[0][None])[0]]))
    assert result.provenance["padded"] == [{"from": [64, 82], "to": [64, 96]}]
    assert result.provenance["postprocess"]["average"] == "softmax"
    assert result.labels[0] == "wall" and result.areas(1)[0].index == np.bincount(result.map.reshape(-1)).argmax()
    assert len(result.areas()) == len(np.unique(result.map))
    assert "classes, most of it" in repr(result)
    answer = json.loads(result.to_json(2))
    assert len(answer["areas"]) == len(result.areas()) and "map" not in answer
    assert len(result.lines(2)) == 2


def test_hrvit_itself_refuses_what_infer_pads(models):
    with pytest.raises(refvit.errors.ShapeError, match="64x82, both must be multiples of 32"):
        models["segmentation"](np.ones((1, 3, 64, 82), np.float32))


def test_a_classifier_of_hrvit_pads_too(golden):
    model = refvit.load("hrvit_b1", golden("hrvit_b1").state(), resize=None, crop=None)
    result = model.infer(OTHER)
    assert result.provenance["padded"] == [{"from": [50, 40], "to": [64, 64]}]
    x = np.zeros((1, 3, 64, 64), np.float32)
    x[0, :, :50, :40] = model.preprocess(OTHER)
    np.testing.assert_array_equal(result.logits, model(x)[0])


def test_segmentation_of_any_size_with_every_option(models, golden):
    plain = models["street"].infer(PIXELS)
    assert plain.labels[0] == "road" and "padded" not in plain.provenance
    options = {"scales": [0.5, 1.5], "flip": True, "window": [64, 64], "window_stride": 32, "whole_up_to": 0.5}
    model = refvit.load("hrnet_w18_small_seg", golden("hrnet_w18_small_seg").state(), **options)
    result = model.infer(PIXELS, batch_size=3)
    assert result.map.shape == (70, 90)
    assert result.provenance["postprocess"]["window_stride"] == [32, 32]
    assert not np.array_equal(result.map, plain.map)


def test_pose(models):
    model, boxes = models["pose"], [[5, 5, 30, 50], [20, 10, 60, 40, 0.5]]
    result = model.infer(PIXELS, boxes=boxes)
    frames = [pose.frame(box[:4], (64, 64)) for box in boxes]
    x = np.stack([model.preprocess(pose.crop(PIXELS, frame, (64, 64))) for frame in frames])
    mirrored = pose.flip_heatmaps(model(x[..., ::-1]), joints.mirror_pairs(joints.COCO), shift=True)
    expected = pose.to_image(pose.decode((model(x) + mirrored) / 2), frames, (16, 16))
    np.testing.assert_allclose(result.keypoints, expected, rtol=1e-4)
    np.testing.assert_array_equal(result.boxes, [box[:4] for box in boxes])
    people = result.to_dict()["people"]
    assert people[1]["score"] == pytest.approx(0.5 * expected[1, :, 2].mean(), rel=1e-4)  # seeded heatmaps are all large
    assert "2 people" in repr(result) and any("left_eye" in line for line in result.lines())
    assert model.infer(PIXELS).boxes.tolist() == [[0, 0, 90, 70]]


def test_many_images_with_boxes(models):
    model, boxes = models["pose"], [[[1, 1, 30, 40]], None, []]
    results = list(model.infer([PIXELS, OTHER, PIXELS], boxes=boxes))
    assert [len(r.keypoints) for r in results] == [1, 1, 0]
    np.testing.assert_allclose(results[0].keypoints, model.infer(PIXELS, boxes=boxes[0]).keypoints, rtol=1e-3)
    bad = list(model.infer([PIXELS, OTHER], boxes=[[[99, 99, 5, 5]], [[1, 1, 5, 5]]]))
    assert "outside of the image" in str(bad[0].error) and bad[1].error is None
    for count in (1, 3):
        with pytest.raises(ConfigError, match="boxes: as many entries as images expected, got"):
            list(model.infer([PIXELS, OTHER], boxes=[None] * count))
    with pytest.raises(ConfigError, match="boxes: an entry for each image expected, got 5"):
        model.infer([PIXELS], boxes=5)
    with pytest.raises(ValueError, match="my own"):
        list(model.infer(broken(), boxes=[None] * 3))


def broken():
    yield PIXELS
    raise ValueError("my own")


def test_images_without_people_are_answered_as_they_come(models):
    read = []

    def images():
        for i in range(40):
            read.append(i)
            yield OTHER

    answers = models["pose"].infer(images(), boxes=([] for _ in range(40)))
    assert next(answers).keypoints.shape == (0, 17, 3)
    assert len(read) <= 8
    with pytest.raises(ConfigError, match="boxes: only pose estimation"):
        models["street"].infer(PIXELS, boxes=[[1, 1, 5, 5]])


def test_detection(models):
    model = models["detection"]
    result = model.infer(PIXELS)
    raw = model(model.preprocess(PIXELS)[None])
    anchors = detection.anchors(detection.map_sizes((320, 320)))
    found = detection.detect(raw["scores"][0], raw["boxes"][0], anchors, rule="cvnets-0.1", threshold=0.02)
    assert len(result.boxes) == len(found.scores) > 0
    scores = [b.score for b in result.boxes]
    assert scores == sorted(scores, reverse=True)
    for b in result.boxes:
        assert 0 <= b.x0 <= b.x1 <= 90 and 0 <= b.y0 <= b.y1 <= 70
        assert b.label == model.labels[b.index] != "background"
    assert len(result.lines(3)) == 3


@pytest.mark.parametrize("task", ["segmentation", "street", "pose", "detection"])
def test_every_answer_can_be_kept(models, tmp_path, task):
    result = models[task].infer(PIXELS)
    assert np.asarray(result.plot()).std() > 1
    for name in ("a.png", "a.json", "a.jpg"):
        assert result.save(tmp_path / name).stat().st_size > 100
    assert json.loads((tmp_path / "a.json").read_text())["size"] == [90, 70]
    assert result._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UnsupportedError, match=r"not of classification: it is in \."):
        result.top()


def test_answers_say_what_they_are(models, demo):
    with pytest.raises(UnsupportedError, match=r"answer of classification, not of segmentation: it is in \.top"):
        demo.infer(PIXELS).map  # noqa: B018
    for attribute in ("keypoints", "boxes"):
        with pytest.raises(UnsupportedError, match="not of pose"):
            getattr(models["street"].infer(PIXELS), attribute)


def test_the_map_as_a_file(models, tmp_path, demo):
    result = models["street"].infer(PIXELS)
    path = result.save_map(tmp_path / "map.png")
    with Image.open(path) as image:
        assert image.mode == "P" and image.getpalette()[:3] == [128, 64, 128]  # road
        np.testing.assert_array_equal(np.asarray(image), result.map)
    with pytest.raises(ConfigError, match=r"a name ending in \.png expected"):
        result.save_map(tmp_path / "map.jpg")
    with pytest.raises(UnsupportedError):
        demo.infer(PIXELS).save_map(tmp_path / "other.png")


def test_options_are_kept_with_the_weights(models, tmp_path, golden):
    state = golden("hrnet_w18_small_seg").state()
    loaded = refvit.load("hrnet_w18_small_seg", state, align_corners=True, flip=True, mean=(0, 0, 0))
    path = store.save(loaded._weights, tmp_path / "w.safetensors")
    again = refvit.load(None, path)
    assert again.config.align_corners and again.postprocess.flip and again.preprocess.mean == (0, 0, 0)
    changed = refvit.load(None, path, align_corners=False, flip=False)
    assert not changed.config.align_corners and not changed.postprocess.flip
    assert changed._weights.sha256 == again._weights.sha256
    x = RNG.standard_normal((1, 3, 64, 64)).astype(np.float32)
    assert not np.array_equal(changed(x), again(x))


def test_what_a_file_cannot_tell_is_recorded_or_asked_for(golden):
    state = golden("hrnet_w18_small_seg").state()
    assumed = refvit.load("hrnet_w18_small_seg", state)._weights.source
    assert assumed["align_corners"] == "False, as published for Cityscapes, assumed from 19 classes"
    assert "align_corners" not in refvit.load("hrnet_w18_small_seg", state, align_corners=False)._weights.source
    for name in ("last_layer.3.weight", "last_layer.3.bias"):
        state[name] = state[name][:7]
    with pytest.raises(WeightsError, match=r"the number of classes, 7, tell align_corners; say align_corners="):
        refvit.load("hrnet_w18_small_seg", state)
    for value in (True, False):
        assert refvit.load("hrnet_w18_small_seg", state, align_corners=value).config.align_corners is value
    ocr = refvit.load("hrnet_w48_ocr", golden("hrnet_w48_ocr").state())
    assert ocr.config.align_corners and ocr._weights.source["align_corners"].startswith("True, as published")


def test_what_was_assumed_is_said_until_it_is_told(golden, tmp_path):
    state = golden("hrnet_w32_pose").state()
    found = refvit.load("hrnet_w32_pose", state)._weights.source
    assert {"resize", "mean", "std", "channel_order", "labels"} <= set(found["assumed"]) and "256x192" in found["resize"]
    told = refvit.load("hrnet_w32_pose", state, resize=(384, 288), labels=joints.COCO)._weights
    assert {"mean", "std"} <= set(told.source["assumed"]) and not {"resize", "labels"} & set(told.source["assumed"])
    assert "resize" not in told.source
    again = refvit.load(None, store.save(told, tmp_path / "w.safetensors"), mean=(0, 0, 0))._weights.source
    assert "mean" not in again["assumed"] and "std" in again["assumed"]


def test_joints_of_mpii(golden):
    state = golden("hrnet_w32_pose").state()
    for name in ("final_layer.weight", "final_layer.bias"):
        state[name] = state[name][:16]
    model = refvit.load("hrnet_w32_pose", state)
    assert model.labels == joints.MPII and model.input_size == (256, 256)
    assert "resize" not in model._weights.source


def test_people_parsing_swaps_left_and_right(golden):
    state = golden("hrnet_w18_small_seg").state()
    for name in ("last_layer.3.weight", "last_layer.3.bias"):
        state[name] = np.concatenate([state[name], state[name][:1]])
    model = refvit.load("hrnet_w18_small_seg", state)
    assert model.labels[14:16] == ("Left-arm", "Right-arm") and model.postprocess.flip
    assert joints.mirror_pairs(model.labels) == ((14, 15), (16, 17), (18, 19))


def test_a_detector_of_other_classes(golden):
    state = golden("mobilevit_xxs_ssdlite.cvnets").state()
    for name in [n for n in state if "loc_cls_layer" in n and n.endswith(("block.conv.weight", "block.conv.bias"))]:
        if "dw_conv" not in name:
            anchors = 4 if ".5." in name else 6
            state[name] = (
                state[name].reshape(anchors, 85, *state[name].shape[1:])[:, :25].reshape(anchors * 25, *state[name].shape[1:])
            )
    labels = ["background", *(f"thing {i}" for i in range(20))]
    result = refvit.load("mobilevit_xxs_ssdlite", state, labels=labels, score_threshold=0.05).infer(PIXELS)
    assert {b.label for b in result.boxes} <= set(labels[1:])


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("street", {"crop": 32}, "crop: segmentation answers for the whole image"),
        ("pose", {"crop": 32}, "crop: pose answers for the whole image"),
        ("detection", {"crop": 32}, "crop: detection answers for the whole image"),
        ("pose", {"resize": 128}, "pose estimation needs inputs of one size"),
        ("pose", {"enlarge": 128}, "pose estimation needs inputs of one size"),
        ("pose", {"labels": [str(i) for i in range(17)]}, "flip: mirrored joints need names"),
    ],
)
def test_what_no_image_could_be_answered_with_does_not_load(files, task, fields, message):
    with pytest.raises(ConfigError, match=message):
        refvit.load(None, files / f"{task}.safetensors", **fields)


def test_another_window_drops_the_stride_that_was_for_the_old_one(models, files):
    assert models["street"].postprocess.window_stride == (1024, 2048)
    assert models["street"].postprocess.whole_up_to == 1
    for window in (1024, None):
        assert refvit.load(None, files / "street.safetensors", window=window).postprocess.window_stride is None


def test_options_of_another_model_are_refused(golden, demo, xxs):
    with pytest.raises(ConfigError, match="align_corners: no option of mobilevit_xxs; its are none"):
        refvit.load(align_corners=True)
    with pytest.raises(WeightsError, match=r"align_corners: no option of layout mobilevit\.timm; its are none"):
        refvit.load("mobilevit_xxs", xxs, align_corners=True)
    with pytest.raises(ConfigError, match="post-processing of classification: unknown flip"):
        refvit.load(flip=True)
    with pytest.raises(ConfigError, match="did you mean window_stride"):
        refvit.load(window_strid=3)
    with pytest.raises(ConfigError, match="align_corners: something like False expected, got 'yes'"):
        refvit.load("hrnet_w18_small_seg", golden("hrnet_w18_small_seg").state(), align_corners="yes")


# the command line


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for task in ("street", "pose", "detection"):
        store.save(models[task]._weights, folder / f"{task}.safetensors")
    Image.fromarray(PIXELS).save(folder / "one.png")
    return folder


def test_command_line(run, files, models, tmp_path):
    image = files / "one.png"
    weights = ["--weights", files / "street.safetensors"]
    code, out, err = run(
        "infer", image, *weights, "--map", tmp_path / "m.png", "--save", tmp_path / "a.png", "--set", "flip=true"
    )
    assert code == 0 and "saved" in err
    flipped = refvit.load(None, files / "street.safetensors", flip=True).infer(str(image))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), flipped.map)
    assert [line.strip() for line in out.splitlines()[1:]] == [line.strip() for line in flipped.lines(5)]
    assert (tmp_path / "a.png").exists()
    code, out, _ = run(
        "infer", image, "--weights", files / "pose.safetensors", "--box", "5,5,30,50", "--box", "20,10,60,40,0.5", "--json"
    )
    assert code == 0 and len(json.loads(out)["people"]) == 2
    code, out, _ = run("infer", image, "--weights", files / "detection.safetensors", "--set", "rule=cvnets-head", "--top", 2)
    assert code == 0 and len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "flip"), "NAME=VALUE expected"),
        (("--set", "flp=1"), "did you mean flip?"),
        (("--set", "flip=1"), "flip: True or False expected, got 1"),
        (("--set", "scales=[0.5,"), "scales: numbers above 0"),
        (("--box", "1,2,3"), "X,Y,WIDTH,HEIGHT"),
        (("--box", "1,2,3,4"), "boxes: only pose estimation"),
        (("--map", "m.jpg"), "ending in .png"),
        (("--set", "backend=numpy"), "backend: an argument of its own"),
        (("--set", "boxes=[]"), "boxes: an argument of its own"),
    ],
)
def test_bad_arguments(run, files, arguments, message):
    code, _, err = run("infer", files / "one.png", "--weights", files / "street.safetensors", *arguments)
    assert code == 2 and message in err


def test_attention_of_the_embedded_model(run, files, tmp_path):
    image = files / "one.png"
    code, _, err = run("infer", image, "--attention", tmp_path / "a.png", "--at", "10,20")
    assert code == 0 and "a.png" in err
    expected = refvit.load().attention(str(image), at=(10, 20)).plot()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(expected))
    for arguments, message in (
        (("--at", "1,2"), "--attention"),
        (("--attention", "a.json"), "ending in .png"),
        (("--attention", tmp_path / "b.png", "--at", "1"), "X,Y in whole pixels"),
        (("--attention", tmp_path / "b.png", "--at", "64,1"), "64"),
    ):
        code, _, err = run("infer", image, *arguments)
        assert code == 2 and message in err, (arguments, err)


def test_for_one_image_only(run, files, tmp_path):
    for option in (("--map", tmp_path / "m.png"), ("--box", "1,2,3,4"), ("--attention", tmp_path / "a.png")):
        code, _, err = run("infer", files / "one.png", files / "one.png", "--weights", files / "pose.safetensors", *option)
        assert code == 2 and "for one image" in err
