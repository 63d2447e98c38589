"""Heading 2, labels: what people have for "these classes of these images", and what else it could be taken for.

The class of inputs: class indices, class names and multi-hot rows, for all images or one list per image, of equal and
of unequal lengths, empty for some images, as tensors of any dtype, arrays, lists, tuples and lists of those. Each is
read as what it is; what could be two things is read with a note or refused, and so is what is none (soft labels,
duplicates, rows of another width). Images with fewer classes are padded, and everything made from the result knows it.
Of heading 4, the scores: a softmax only of exclusive classes.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssa_fast import SSA, InputWarning, LargeImageSSA, evaluate, localize
from ssa_fast.models import zoo
from ssa_fast.models.class_names import find_names
from ssa_fast.runs import Predictor, RunOptions
from tests.networks import DeepHead, Pyramid

if TYPE_CHECKING:
    from pathlib import Path

    from ssa_fast import SSAResult

timm = pytest.importorskip("timm", reason="needs timm")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.filterwarnings("error::ssa_fast.InputWarning")  # a note that no test expects is an error

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
ROWS = [[1, 3], [], [2]]
PADDED = [[1, 3], [-1, -1], [2, -1]]
HOT = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])


@pytest.fixture(scope="module")
def run() -> SSA:
    torch.manual_seed(1)
    return SSA(Pyramid(), input_shape=64)


def outputs(num_classes: int) -> SSA:
    torch.manual_seed(1)
    return SSA(Pyramid(classes=num_classes), input_shape=64, stages=["blocks.3"])


MULTI_HOT: dict[str, Any] = {
    **{str(dtype): HOT.to(dtype) for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float16)},
    **{str(dtype): HOT.to(dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)},
    **{f"array of {dtype}": HOT.numpy().astype(dtype) for dtype in ("int64", "uint8", "bool", "float32")},
    "lists of ints": HOT.tolist(),
    "lists of bools": HOT.bool().tolist(),
    "lists of floats": HOT.float().tolist(),
    "tuple of tuples": tuple(map(tuple, HOT.tolist())),
    "list of tensors": list(HOT),
    "list of arrays": list(HOT.numpy()),
    "view of another matrix": HOT.repeat(1, 2)[:, ::1][:, :5],
    "transposed": HOT.T.contiguous().T,
    "sparse": HOT.to_sparse(),
}
PER_IMAGE: dict[str, Any] = {
    "lists": ROWS,
    "tuple of tuples": tuple(map(tuple, ROWS)),
    "tensors": [torch.tensor(row, dtype=torch.int64) for row in ROWS],
    "arrays": [np.array(row, np.int32) for row in ROWS],
    "array of lists": np.array([*map(list, ROWS), None], dtype=object)[:3],
    "lists of NumPy numbers": [[np.int64(index) for index in row] for row in ROWS],
    "lists of tensors": [[torch.tensor(index) for index in row] for row in ROWS],
    "ranges": [range(1, 4, 2), range(0), range(2, 3)],
    "nested tensor": torch.nested.nested_tensor([torch.tensor(row).long() for row in ROWS], layout=torch.jagged),
    "padded tensor": torch.tensor(PADDED),
    "padded array": np.array(PADDED, np.int16),
}


@pytest.mark.parametrize("classes", [*MULTI_HOT.values(), *PER_IMAGE.values()], ids=[*MULTI_HOT, *PER_IMAGE])
def test_multi_hot_rows_and_lists_of_unequal_lengths_are_what_they_are(run: SSA, classes: Any) -> None:
    result = run(IMAGES, classes)
    assert result.classes.tolist() == PADDED
    assert result.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert result.notes == ()


@pytest.mark.parametrize(("network", "options"), [(Pyramid, {}), (DeepHead, {"scales": (1.0, 0.5), "flip": True})])
def test_an_image_in_a_padded_batch_is_as_if_alone(network: type[nn.Module], options: dict[str, Any]) -> None:
    """Right values for valid classes, and zeros everywhere else."""
    ssa, images = SSA(network().double(), input_shape=64, **options), IMAGES.double()
    result = ssa(images, ROWS)
    for b, row in enumerate(ROWS):
        maps = {"cams": result.cams, "seed": result.seed, **result.stages}
        for values in maps.values():
            assert values[b, len(row) :].eq(0).all()
        if row:
            alone = ssa(images[b : b + 1], [row])
            others = {"cams": alone.cams, "seed": alone.seed, **alone.stages}
            for name, values in maps.items():
                torch.testing.assert_close(values[b, : len(row)], others[name][0], rtol=0, atol=1e-6)
            torch.testing.assert_close(result.scores[b, : len(row)], alone.scores[0])
            assert alone.cams.amax() == 1
    assert result.scores[~result.valid].tolist() == [0, 0, 0]
    assert ssa(images, result.classes).classes.tolist() == PADDED  # a result's classes go in again


def test_padding_stays_zero_beside_nan(run: SSA) -> None:
    images = IMAGES.clone()
    images[2, :, :8, :8] = float("nan")
    result = run(images, ROWS)
    assert result.cams[2, 0].isnan().all()
    assert result.cams[2, 1].eq(0).all()


def test_indices_for_all_images_and_in_order(run: SSA) -> None:
    assert run(IMAGES, [4, 0]).classes.tolist() == [[4, 0]] * 3
    assert run(IMAGES, torch.tensor([[4, 0], [1, 2], [0, 3]], dtype=torch.uint8)).classes.tolist()[0] == [4, 0]
    assert run(IMAGES, np.array([[1], [1], [0]])).classes.tolist() == [[1], [1], [0]]  # no row holds one twice
    assert run(IMAGES, HOT[0]).classes.tolist() == run(IMAGES, HOT[0] > 0).classes.tolist() == [[1, 3]] * 3
    assert run(IMAGES, range(5)).valid.all()


LABELS = [torch.tensor([4, 0, 2]), np.array([4, 0, 2]), [4, 0, 2], [torch.tensor(4), torch.tensor(0), torch.tensor(2)]]


@pytest.mark.parametrize("classes", LABELS, ids=["tensor", "array", "list", "list of tensors"])
def test_one_class_per_image_is_not_guessed_but_said(run: SSA, classes: Any) -> None:
    with pytest.warns(
        InputWarning, match=r"3 classes for every image; for one class per image pass classes\[:, None\]"
    ) as seen:
        result = run(IMAGES, classes)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert result.classes.tolist() == [[4, 0, 2]] * 3
    assert result.notes == (str(seen[0].message),)
    if hasattr(classes, "shape"):
        assert run(IMAGES, classes[:, None]).classes.tolist() == [[4], [0], [2]]  # type: ignore[call-overload]
    assert run(IMAGES, [[int(index)] for index in classes]).classes.tolist() == [[4], [0], [2]]
    assert run(IMAGES[:2], classes).notes == run(IMAGES[:1], [4]).notes == ()


@pytest.mark.parametrize(
    ("num_classes", "classes", "expected"),
    [
        (2, torch.tensor([[1, 1], [0, 1], [0, 0]]), [[0, 1], [1, -1], [-1, -1]]),  # a row holds one twice: no indices
        (2, [[1, 1], [1, 0], [1, 0]], [[0, 1], [0, -1], [0, -1]]),
        (2, torch.tensor([[0, 1], [1, 0], [1, 0]]).bool(), [[1], [0], [0]]),
        (2, [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[1], [0], [0]]),
        (2, [[0, 1], [1], [0]], [[0, 1], [1, -1], [0, -1]]),
        (2, [[0], [1], [1]], [[0], [1], [1]]),
        (2, [0], [[0], [0], [0]]),
        (1, torch.tensor([[1], [0], [1]]), [[0], [-1], [0]]),  # 1 is no index of a single output
        (1, torch.tensor([[1.0], [0.0], [1.0]]), [[0], [-1], [0]]),
        (1, [[True], [False], [False]], [[0], [-1], [-1]]),
        (1, [0], [[0], [0], [0]]),
        (1, [True], [[0], [0], [0]]),
    ],
)
def test_zeros_and_ones_of_few_outputs(num_classes: int, classes: Any, expected: list[list[int]]) -> None:
    assert outputs(num_classes)(IMAGES, classes).classes.tolist() == expected


@pytest.mark.parametrize(
    ("num_classes", "classes", "expected"),
    [
        (2, torch.tensor([[0, 1], [0, 1], [0, 1]]), [[0, 1]] * 3),
        (2, [[1, 0], [1, 0], [1, 0]], [[1, 0]] * 3),
        (2, [0, 1], [[0, 1]] * 3),
        (1, torch.tensor([[0], [0], [0]]), [[0]] * 3),
    ],
)
def test_zeros_and_ones_that_may_be_indices_are_read_with_a_note(
    num_classes: int, classes: Any, expected: list[list[int]]
) -> None:
    with pytest.warns(InputWarning, match="zeros and ones for a model of .* were read as class indices; pass bool"):
        result = outputs(num_classes)(IMAGES, classes)
    assert result.classes.tolist() == expected


@pytest.mark.parametrize(
    ("classes", "error", "text"),
    [
        ([3, 3], ValueError, r"each class once per image, got 3 twice for image 0; pass classes\[:, None\]"),
        (torch.tensor([2, 2, 2]), ValueError, "got 2 twice for image 0"),
        ([[1, 2], [3, 3], [4]], ValueError, "got 3 twice for image 1"),
        (torch.tensor([[0, 2], [4, 4], [1, 2]]), ValueError, "got 4 twice for image 1"),
        (HOT[:, :4], ValueError, r"got 0 twice for image 0; .* zeros and ones of width 5 for multi-hot"),
        (torch.cat([HOT, HOT], 1), ValueError, "zeros and ones of width 5"),
        (HOT[:, :4].bool(), TypeError, r"expected integers, got bool of shape \(3, 4\); .*of shape \(B, 5\)"),
        (HOT.float()[:, :4], TypeError, r"got float32 of shape \(3, 4\)"),
        (HOT * 0.7, ValueError, r"zeros and ones, got soft labels such as 0.7; pass labels > 0.5"),
        ((HOT * 0.7 + 0.1).half(), ValueError, "soft labels"),
        (HOT.float() * 2, TypeError, "got float32"),
        (HOT.float().log(), TypeError, "got float32"),  # NaN and infinities
        (HOT - (HOT == 0) * torch.tensor([1, 0, 0, 0, 0]), ValueError, "got rows of -1, 0 and 1; pass labels == 1"),
        (HOT * 0, ValueError, "at least one class, got none"),
        (HOT.bool() & False, ValueError, "at least one class, got none"),
        ([], ValueError, "at least one class, got none"),
        ([[], [], []], ValueError, "at least one class, got none"),
        (torch.zeros(3, 0, dtype=torch.int64), ValueError, "at least one class, got none"),
        (torch.zeros(0), ValueError, "at least one class, got none"),
        ([[1], [2, 3]], ValueError, "one list per image, 3, got 2"),
        (HOT[:2], ValueError, r"B = 3 images, got \(2, 5\)"),
        (HOT.T, ValueError, r"B = 3 images, got \(5, 3\)"),
        ([[1], [2, 5], [0]], ValueError, "indices in 0..4, the model's outputs, got 5"),
        ([[1], [2, -1], [0]], ValueError, "got -1"),
        ([-1], ValueError, "got -1"),
        ([[1], [True, False], [0]], TypeError, "got True in lists of unequal lengths"),
        ([[1], [2.0, 3.0], [0]], TypeError, "got 2.0 in lists of unequal lengths"),
        ([[1], None, [0]], TypeError, "expected integers"),
        ([[[1]], [[2]], [[3]]], TypeError, "expected integers"),
        ([{"labels": torch.tensor([1])}] * 3, TypeError, "expected integers"),
        ({1, 2}, TypeError, "a list of class indices"),
        (torch.tensor(3), ValueError, r"got \(\)"),
        (torch.tensor([1 + 0j]), TypeError, "got complex64"),
    ],
)
def test_what_is_neither_is_refused(run: SSA, classes: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^classes: .*{text}"):
        run(IMAGES, classes)


@pytest.mark.parametrize(
    ("num_classes", "classes", "text"),
    [
        (2, torch.tensor([[0, 1], [1, 0], [0, 1]]), "got 0 1 and 1 0, which may be either for two outputs; pass bool"),
        (3, torch.tensor([0, 1, 1]), r"may be one class per image, too; pass classes\[:, None\] for that, or bool"),
        (1, [1, 0, 1], "got 1"),
        (1, torch.tensor([1.0, 0.0, 1.0]), r"zeros and ones of shape \(B, 1\)"),
    ],
)
def test_what_may_be_two_things_is_refused(num_classes: int, classes: Any, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^classes: .*{text}"):
        outputs(num_classes)(IMAGES, classes)


ANIMALS = ["cat", "dog", "Big_Bird, bird", "cow", "bird of prey"]


def test_names_stand_for_outputs(run: SSA) -> None:
    named = SSA(run.model, input_shape=64, names=ANIMALS)
    result = named(IMAGES, [["cat"], [], ["dog", 3, "big bird"]])
    assert result.classes.tolist() == [[0, -1, -1], [-1, -1, -1], [1, 3, 2]]
    assert result.names == [["cat", "", ""], ["", "", ""], ["dog", "cow", "Big_Bird, bird"]]
    assert named(IMAGES, ["bird", "COW"]).classes.tolist() == [[2, 3]] * 3
    assert named(IMAGES, np.array(["bird"])).classes.tolist() == [[2]] * 3
    assert named(IMAGES, "bird of prey, 1").classes.tolist() == [[4, 1]] * 3
    assert named(IMAGES, "Big_Bird, bird").classes.tolist() == [[2]] * 3
    with pytest.warns(InputWarning, match="for every image"):
        named(IMAGES, ["cat", "dog", "cow"])
    for names in (dict(enumerate(ANIMALS)), {str(i): name for i, name in enumerate(ANIMALS)}, tuple(ANIMALS)):
        assert SSA(run.model, input_shape=64, names=names).names == tuple(ANIMALS)
    assert run(IMAGES[:1], [1, 4]).names == [["class 1", "class 4"]]


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (["dgo"], "the model has no class 'dgo'; did you mean 'dog'"),
        ([["cat"], ["bird of pray"], []], "did you mean 'bird of prey'"),
        (["horse"], "no class 'horse'"),
        ("crane", "'crane' is the name of several classes; give one of the indices"),
        ("9", "expected an index from 0 to 5 for the model, got 9"),
        (["3"], "'3' is an index and the name of class 0; pass the index as a number"),
        ([["cat"], ["CAT", "dog"], [1, "cat"]], "each class once per image, got 1 twice for image 2"),
    ],
)
def test_names_that_stand_for_no_output_or_for_several(classes: Any, text: str) -> None:
    ssa = SSA(
        Pyramid(classes=6), input_shape=64, names=["3", "cat", "dog", "hoist, crane", "crane, heron", "bird of prey"]
    )
    with pytest.raises(ValueError, match=f"^classes: .*{re.escape(text)}"):
        ssa(IMAGES, classes)


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (["a"], ValueError, "names: expected 5, one per output of the model, got 1"),
        ("abcde", TypeError, "names: expected a name per output"),
        ([1, 2, 3, 4, 5], TypeError, "names: expected a name per output"),
        ({0: "a", 2: "b"}, TypeError, "names: expected a name per output"),
        ({name: i for i, name in enumerate(ANIMALS)}, TypeError, "names: expected a name per output"),
    ],
)
def test_wrong_names(run: SSA, names: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        SSA(run.model, input_shape=64, names=names)


@pytest.mark.slow
def test_hugging_face_networks_carry_their_names() -> None:
    labels = dict(enumerate(ANIMALS))
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=labels
    )
    ssa = SSA(transformers.ResNetForImageClassification(config), input_shape=64)
    assert ssa.names == tuple(ANIMALS)
    assert ssa(IMAGES, [["dog"], ["bird", "cat"], []]).classes.tolist() == [[1, -1], [2, 0], [-1, -1]]
    assert ssa(IMAGES, ["cow"]).notes == ()  # the network's own, not a guess
    with pytest.raises(ValueError, match="no class 'cats'; did you mean 'cat'"):
        ssa(IMAGES, ["cats"])


def test_imagenet_names_of_timm_and_torchvision_are_a_guess_that_is_said() -> None:
    for model, library in ((timm.create_model("test_resnet"), "timm"), (torchvision.models.resnet18(), "torchvision")):
        ssa = SSA(model, input_shape=64)
        result = ssa(IMAGES[:1], ["tabby", "tench", "golden_retriever"])
        assert result.classes.tolist() == [[281, 0, 207]]
        assert result.names[0][1].startswith("tench")
        (note,) = result.notes
        assert f"as {library}'s ResNet has 1000 outputs; pass names=" in note
        with pytest.raises(ValueError, match="no class 'tabbi'; did you mean"):
            ssa(IMAGES[:1], ["tabbi"])
    assert SSA(model, input_shape=64, names=[str(i) for i in range(1000)])(IMAGES[:1]).notes == ()
    with pytest.raises(ValueError, match="'crane' is the name of several classes"):
        SSA(timm.create_model("test_resnet"), input_shape=64)(IMAGES[:1], ["crane"])


class Wrapped(nn.Module):
    """A network inside another one, as of Lightning or ``DataParallel``."""

    def __init__(self, net: nn.Module, **attributes: Any) -> None:
        super().__init__()
        self.net = net
        self.__dict__.update(attributes)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def test_where_networks_carry_names() -> None:
    five = Pyramid()
    for name in ("names", "class_names", "categories", "classes", "CLASSES"):
        assert find_names(Wrapped(five, **{name: ANIMALS}), 5) == (tuple(ANIMALS), None)
    assert find_names(Wrapped(five, names=dict(enumerate(ANIMALS))), 5)[0] == tuple(ANIMALS)
    assert find_names(Wrapped(five, dataset_meta={"classes": ANIMALS}), 5)[0] == tuple(ANIMALS)
    assert find_names(Wrapped(Wrapped(five), classes=5, names=len), 5) == ((), None)
    assert find_names(Wrapped(five, names=ANIMALS[:4]), 5) == ((), None)
    outer, note = find_names(Wrapped(timm.create_model("test_resnet")), 1000)
    assert outer[281] == "tabby, tabby cat"
    assert note is not None
    own_head = timm.create_model("test_resnet", num_classes=7)
    assert find_names(own_head, 7) == ((), None)
    other = timm.create_model("test_resnet", num_classes=1000)
    other.pretrained_cfg = {**other.pretrained_cfg, "num_classes": 21843}
    assert find_names(other, 1000) == ((), None)
    other.pretrained_cfg = {"num_classes": 3, "label_names": ["n1", "n2", "n3"], "label_descriptions": {"n2": "fox"}}
    assert find_names(other, 3) == (("n1", "fox", "n3"), None)


def test_a_datasets_ambiguous_folder_is_refused() -> None:
    twins = zoo.Classifier("m", "none", Pyramid(), ("crane", "dog", "crane", "Big_Bird, bird", "cow"))
    with pytest.raises(ValueError, match=r"'crane' is the name of several classes of m, \[0, 2\]"):
        twins.resolve_labels(["crane"], ("crane",))
    assert twins.resolve_labels(["bird", "Dog"], ("bird", "Dog")) == [1, 3]
    assert twins.select("big bird, cow") == [3, 4]


@pytest.fixture(scope="module")
def padded(run: SSA) -> SSAResult:
    return run(IMAGES, ROWS)


def test_masks_boxes_and_panels_know_the_valid_classes(padded: SSAResult) -> None:
    for options in ({"background": 0.0}, {"alpha": 8.0}, {"background": 0.3, "ignore": 0.0}):
        labels = padded.masks(**options)
        assert set(labels[1].unique().tolist()) == {0}  # an image without classes is background
        assert set(labels[2].unique().tolist()) <= {0, 1, 255}
        assert torch.equal(labels[2], localize.masks(padded.cams[2, :1], **options)[0])
    boxes = padded.boxes(box_threshold=0.0, components="all")
    assert [[len(found) > 0 for found in image] for image in boxes] == padded.valid.tolist()
    panels = padded.panels(torch.rand(3, 3, 64, 64), names=ANIMALS)
    one, two = panels[2].height, panels[0].height
    assert panels[1].height == one < two < 2 * one
    assert np.asarray(panels[1]).std() > 0  # the image is drawn


def test_evaluation_leaves_padding_out(padded: SSAResult) -> None:
    truths = [np.where(cam > 0.4, 2, 0) for cam in padded.cams[:, 0].numpy()]
    whole = evaluate.threshold_sweep(padded.cams.numpy(), padded.classes.numpy(), truths, 6, [0.0, 0.2, 0.5])
    rows = zip(padded.cams.numpy(), padded.classes.numpy(), padded.valid.numpy(), strict=True)
    valid = [(cams[keep], classes[keep]) for cams, classes, keep in rows]
    cut = evaluate.threshold_sweep([c for c, _ in valid], [k for _, k in valid], truths, 6, [0.0, 0.2, 0.5])
    assert np.array_equal(whole.confusions, cut.confusions)
    assert whole.confusions.sum() > 0


CATEGORIES = ("a", "b", "c", "d", "e")
RGB = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def predictor(classes: str = "labels", model: nn.Module | None = None, **options: Any) -> Predictor:
    torch.manual_seed(1)
    model = model or Pyramid()
    classifier = zoo.Classifier("p", "none", model.eval(), options.pop("categories", CATEGORIES), **options)
    return Predictor(classifier, SSA(model, input_shape=64, size="stage"), RunOptions(classes=classes))


def test_a_runs_batch_holds_images_with_different_numbers_of_classes() -> None:
    predict = predictor()
    together = predict(list(RGB), [[3, 1], [], [2]])
    assert isinstance(together[1], ValueError)
    assert "no class" in str(together[1])
    for image, row, found in ((RGB[0], [3, 1], together[0]), (RGB[2], [2], together[2])):
        (alone,) = predict([image], [row])
        assert found.classes == alone.classes == row
        assert found.names == [CATEGORIES[index] for index in row]
        assert (found.labels, found.cams.shape) == (alone.labels, alone.cams.shape)
        np.testing.assert_allclose(found.cams, alone.cams, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
        assert all(len(each) == len(row) for each in (found.full, found.scores, found.logits, found.seed))
        assert all(len(maps) == len(row) for maps in found.stages.values())
    (error,) = predict([RGB[0]], [[]])
    assert "at least one class" in str(error)
    wrong = predict(list(RGB), [[1], [7], [2, 2]])
    assert [isinstance(each, Exception) for each in wrong] == [False, True, True]  # each its own image's


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_a_runs_indices_are_never_taken_for_multi_hot_rows(num_classes: int) -> None:
    """The same lists, which SSA alone would note or refuse, are indices here: no warning, whatever their number."""
    listed = {1: "0", 2: "1,0", 3: "0,1"}[num_classes]
    model = Pyramid(classes=num_classes)
    predict = predictor(listed, model, categories=CATEGORIES[:num_classes])
    expected = [int(index) for index in listed.split(",")]
    assert [found.classes for found in predict(list(RGB))] == [expected] * 3
    given = [expected, expected[::-1], expected]
    assert [found.classes for found in predict(list(RGB), given)] == given


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([["b", "a"]], [1, 0]),
        (["b", 4], [1, 4]),
        ("b, a", [1, 0]),
        ([[1, 4]], [1, 4]),
        (torch.tensor([[0, 1, 0, 0, 1]]), [1, 4]),
        (np.array([False, True, False, False, True]), [1, 4]),
        ([torch.tensor([4])], [4]),
    ],
    ids=str,
)
def test_a_large_images_classes(tmp_path: Path, classes: Any, expected: list[int]) -> None:
    pytest.importorskip("tifffile", reason="needs tifffile")
    torch.manual_seed(1)
    ssa = SSA(Pyramid(), input_shape=64, stages=["blocks.3"], names=CATEGORIES)
    result = LargeImageSSA(ssa, tile=64)(RGB[0], classes, out=tmp_path / "out.tif")
    assert result.classes == expected
    assert result.names == [CATEGORIES[index] for index in expected]


def test_a_large_images_seed_takes_classes_in_every_form(tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="needs tifffile")
    polish = LargeImageSSA(SSA(Pyramid(), input_shape=64, stages=["blocks.3"], names=CATEGORIES), tile=64)
    seed = torch.rand(2, 4, 4)
    for n, classes in enumerate((["e", "b"], [[4, 1]], "e, b")):
        assert polish(RGB[0], classes, out=tmp_path / f"{n}.tif", seed=seed).classes == [4, 1]
    for classes in ("top2", None, "e", [[4, 1], [2]]):
        with pytest.raises(ValueError, match="classes: expected"):
            polish(RGB[0], classes, out=tmp_path / "no.tif", seed=seed)


def test_a_large_image_says_how_classes_were_read(tmp_path: Path) -> None:
    pytest.importorskip("tifffile", reason="needs tifffile")
    polish = LargeImageSSA(outputs(2), tile=64)
    with pytest.warns(InputWarning, match="were read as class indices; pass bool") as seen:
        assert polish(RGB[0], [[1, 0]], out=tmp_path / "a.tif").classes == [1, 0]
    assert seen[0].filename == __file__
    ssa = SSA(timm.create_model("test_resnet"), input_shape=64, stages=["layer4"])
    polish, seed = LargeImageSSA(ssa, tile=64), torch.rand(1, 4, 4)
    with pytest.warns(InputWarning, match="class names are those of imagenet-1k"):
        assert polish(RGB[0], ["tabby"], out=tmp_path / "b.tif", seed=seed).names == ["class 281"]
    assert polish(RGB[0], [281], out=tmp_path / "c.tif", seed=seed).names == ["class 281"]


def test_scores_are_probabilities_of_exclusive_classes_unless_told_otherwise(run: SSA) -> None:
    result = run(IMAGES, [[0], [4, 1], []])
    exclusive, each = result.logits.softmax(1), result.logits.sigmoid()
    expected = torch.stack([exclusive[0, 0], torch.tensor(0.0), exclusive[1, 4], exclusive[1, 1]])
    torch.testing.assert_close(result.scores[:2].flatten(), expected)
    independent = SSA(run.model, input_shape=64, probability="sigmoid")(IMAGES, [4, 1])
    torch.testing.assert_close(independent.scores, each[:, [4, 1]])
    with pytest.raises(ValueError, match=r"probability: expected .*, got 'relu'"):
        SSA(run.model, probability="relu")


def test_the_score_of_a_single_logit_is_its_sigmoid() -> None:
    """A softmax of one number is 1, whatever the network says."""
    ssa = outputs(1)
    result = ssa(IMAGES)
    torch.testing.assert_close(result.scores, result.logits.sigmoid())
    assert ssa.probability == "sigmoid"
    assert result.scores.lt(1).all()
    assert predictor("predicted", ssa.model, categories=("one",))(list(RGB))[0].scores[0] < 1
    classifier = zoo.Classifier("one", "none", ssa.model, ("one",))
    torch.testing.assert_close(
        classifier.probabilities(torch.tensor([[0.0], [2.0]])), torch.tensor([[0.5], [0.880797]])
    )
    with pytest.raises(ValueError, match=r"probability: .* the softmax of a single logit is always 1"):
        SSA(ssa.model, input_shape=64, probability="softmax")


@pytest.mark.slow
def test_a_network_that_says_it_has_several_labels_per_image() -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    config.problem_type = "multi_label_classification"
    ssa = SSA(transformers.ResNetForImageClassification(config), input_shape=64)
    result = ssa(IMAGES, "top4")
    torch.testing.assert_close(result.scores, result.logits.sigmoid().gather(1, result.classes))
    assert SSA(ssa.model, input_shape=64, probability="softmax")(IMAGES, "top4").scores.sum() == pytest.approx(3)


def test_a_runs_scores_by_option(tmp_path: Path) -> None:
    file = tmp_path / "one.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=1).state_dict(), file)
    assert zoo.load("shufflenet_v2_x0_5", str(file)).probability == "sigmoid"
    assert zoo.load("demo").probability == "sigmoid"
    assert zoo.load("demo", probability="softmax").probability == "softmax"
    assert zoo.load("shufflenet_v2_x0_5", "none").probability == "softmax"
    assert zoo.load("shufflenet_v2_x0_5", "none", probability="sigmoid").probability == "sigmoid"


def test_no_note_without_need(run: SSA) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (None, "predicted", "top3", [1], [[1], [2], [3]], HOT, [3, 4]):
            assert run(IMAGES, classes).notes == ()
