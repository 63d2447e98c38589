"""Test networks that return something else than a tensor of logits (heading 4).

The class: the forward of a network returns its logits among other tensors (features, embeddings, a loss, auxiliary
heads, earlier exits, hidden states), in a tuple, list, dict, named tuple, dataclass or object, in any order; or no
logits at all, but their softmax or sigmoid; or one logit per image without its axis. Which tensor is the logits is
decided by the layers that it depends on, never by its place; where they do not tell, the caller has to.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssa_fast import SSA
from ssa_fast.large.receptive_field import measure_receptive_field
from ssa_fast.models import describe, inspect_model
from tests.networks import Pyramid, positive_weights

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, CLASSES, WIDTH = 64, 5, 20


class Named(NamedTuple):
    embedding: Tensor
    scores: Tensor


@dataclass
class Result:
    embedding: Tensor
    scores: Tensor


class Net(Pyramid):
    """``Pyramid`` that returns a function of itself, its pooled features h and its logits z.

    ``early`` are the logits of an auxiliary head on the second block.
    """

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Any], classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        super().__init__(classes)
        self.function = function
        self.early_head = positive_weights(nn.Linear(12, CLASSES))
        self.other_head = positive_weights(nn.Linear(WIDTH, CLASSES))
        self.projection = positive_weights(nn.Linear(WIDTH, 7))
        self.centers = nn.Parameter(torch.rand(CLASSES, WIDTH))
        self.eval()

    def forward(self, images: Tensor) -> Any:
        middle = self.blocks[1](self.blocks[0](images))
        h = self.blocks[3](self.blocks[2](middle)).mean((2, 3))
        z = self.fc(h)
        self.early = self.early_head(middle.mean((2, 3)))
        return self.function(self, h, z)

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.fc(self.features(images).mean((2, 3)))


def draw(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def check_equals_plain(net: Net, **options: Any) -> SSA:
    """Compare logits and CAMs of 1 and of 2 images with those of the same layers in a plain network; return the SSA."""
    plain = Pyramid(net.fc.out_features).eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    ssa, expected = SSA(net, input_shape=SIDE, **options), SSA(plain, input_shape=SIDE)
    classes = [[0, net.fc.out_features - 1]]
    assert (ssa.seed_kind, ssa.info.seed.head) == ("cam", "fc")
    assert ssa.info.num_classes == net.fc.out_features
    for count in (1, 2):
        asked = classes * count if net.fc.out_features > 1 else None
        found, right = ssa(draw(count), asked), expected(draw(count), asked)
        torch.testing.assert_close(found.logits, net.logits(draw(count)))
        torch.testing.assert_close(found.cams, right.cams)
        assert found.cams.amax() > 0
        assert found.notes == ssa.info.notes
    return ssa


AMONG_OTHERS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "features, logits": lambda net, h, z: (h, z),
    "logits, features": lambda net, h, z: (z, h),
    "list": lambda net, h, z: [h, z],
    "dict": lambda net, h, z: {"feat": h, "out": z},
    "named tuple": lambda net, h, z: Named(h, z),
    "dataclass": lambda net, h, z: Result(h, z),
    "object": lambda net, h, z: SimpleNamespace(embedding=h, scores=z),
    "nested": lambda net, h, z: ((h, [h.relu()]), {"head": (z,)}),
    "normalised features": lambda net, h, z: (F.normalize(h), z),
    "features and their norm": lambda net, h, z: (F.layer_norm(h, (WIDTH,)), h, z),
    "features of the logits' width": lambda net, h, z: (h[:, :CLASSES], z),
    "probabilities": lambda net, h, z: (z.softmax(1), z),
    "logits, log probabilities": lambda net, h, z: (z, z.log_softmax(1)),
    "scaled, logits": lambda net, h, z: {"scaled": 2 * z, "out": z},
    "loss of the logits": lambda net, h, z: (F.cross_entropy(z, z.argmax(1)), z),
    "loss of the features": lambda net, h, z: (h.pow(2).mean(), z, h),
    "no loss": lambda net, h, z: (None, z, h),
    "predicted index": lambda net, h, z: (z.argmax(1), z),
    "centers": lambda net, h, z: (net.centers, z),
    "one tensor under three names": lambda net, h, z: {"out": z, "flat": z.view(-1, CLASSES), "last": z},
    "logits, auxiliary": lambda net, h, z: (z, net.early),
    "auxiliary, logits": lambda net, h, z: {"aux": net.early, "out": z},
    "map, logits": lambda net, h, z: (h[:, :, None, None].expand(-1, -1, 4, 4), z),
}


@pytest.mark.parametrize("name", AMONG_OTHERS)
def test_logits_are_found_by_the_layers_they_depend_on(name: str) -> None:
    check_equals_plain(Net(AMONG_OTHERS[name]))


def test_the_choice_among_outputs_is_a_note() -> None:
    (note,) = inspect_model(Net(lambda net, h, z: {"feat": h, "out": z}), input_shape=SIDE).notes
    assert note == (
        "model: of the outputs output['feat'] (1, 20), output['out'] (1, 5), output['out'] is taken for the logits; "
        "logits= names another"
    )
    assert inspect_model(Net(lambda net, h, z: z), input_shape=SIDE).notes == ()


@pytest.mark.parametrize(
    "name",
    [*(name for name in AMONG_OTHERS if "one tensor" not in name and "centers" not in name and name != "no loss")],
)
def test_named_logits_need_no_evidence(name: str) -> None:
    """A key, attribute or field ``logits`` is obeyed without a note, as in Hugging Face's outputs."""
    function = AMONG_OTHERS[name]
    ssa = check_equals_plain(Net(lambda net, h, z: {"others": function(net, h, z), "logits": z}))
    assert ssa.info.notes == ()


def test_named_logits_may_be_an_auxiliary_head() -> None:
    info = inspect_model(Net(lambda net, h, z: {"z": z, "logits": net.early}), input_shape=SIDE)
    assert info.output.path == ("logits",)


UNDECIDED: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "two heads on the same features": lambda net, h, z: (z, net.other_head(h)),
    "a projection beside the logits": lambda net, h, z: (net.projection(h), z),
    "one layer's output in two parts": lambda net, h, z: z.split([2, 3], dim=1),
    "two scalings of the features": lambda net, h, z: (F.normalize(h), h.sqrt()),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_outputs_that_the_layers_do_not_tell_apart_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"model: expected one output to be the logits .*got output\[0\].*; pass logits="
    ):
        describe(Net(UNDECIDED[name]), input_shape=SIDE)


@pytest.mark.parametrize(
    ("function", "logits"),
    [
        (UNDECIDED["two heads on the same features"], 0),
        (UNDECIDED["two heads on the same features"], -2),
        (UNDECIDED["a projection beside the logits"], 1),
        (UNDECIDED["a projection beside the logits"], lambda output: output[1]),
        (lambda net, h, z: {"head": z, "second": net.other_head(h)}, "head"),
        (lambda net, h, z: {1: z, 2: net.other_head(h)}, 1),
        (lambda net, h, z: Named(net.projection(h), z), "scores"),
        (lambda net, h, z: Result(net.projection(h), z), "scores"),
        (lambda net, h, z: {"heads": [net.other_head(h), z]}, lambda output: output["heads"][1]),
        (lambda net, h, z: (z[:, :, None, None], h), lambda output: output[0].flatten(1)),
        (lambda net, h, z: (net.other_head(h), z.sigmoid()), 1),
    ],
)
def test_the_caller_says_where_the_logits_are(function: Callable[[Any, Tensor, Tensor], Any], logits: Any) -> None:
    net = Net(function)
    check_equals_plain(net, logits=logits)
    assert describe(net, logits=logits, input_shape=SIDE).num_classes == CLASSES


def test_the_callers_word_overrules_the_evidence() -> None:
    net = Net(lambda net, h, z: (z, net.early))
    ssa = SSA(net, logits=1, seed="blocks.1", input_shape=SIDE)
    assert ssa.info.notes == ()
    logits = ssa(draw(2)).logits
    torch.testing.assert_close(logits, net.early.detach().float())


@pytest.mark.parametrize(
    ("logits", "error", "text"),
    [
        (2, ValueError, r"logits: expected 2 in the output, which has 0, 1; name one of these"),
        ("logits", ValueError, r"logits: expected 'logits' in the output, which has 0, 1"),
        (True, TypeError, "logits: expected an index, a key or a function of the output, got bool"),
        (0.5, TypeError, "got float"),
        (lambda output: 3, TypeError, "model: expected a tensor of logits, floating-point, got int; pass logits="),
        (lambda output: output[0].argmax(1), TypeError, "floating-point, got torch.int64"),
        (
            lambda output: output[0][:, :, None, None].expand(-1, -1, 2, 2),
            ValueError,
            r"\(B, num_classes\), got \(1, 5,",
        ),
    ],
)
def test_wrong_words(logits: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        inspect_model(Net(lambda net, h, z: (z, h)), logits=logits, input_shape=SIDE)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda net, h, z: "cat",
            "expected it to return a tensor of logits, got str; wrap the model, or pass",
        ),
        (lambda net, h, z: z.argmax(1), "got Tensor"),
        (lambda net, h, z: [{}, None], "got list"),
        (
            lambda net, h, z: z.mean(),
            r"one row of logits per image, but output has the same shape \(\) for two",
        ),
        (
            lambda net, h, z: z[:, :, None],
            r"\(B, num_classes\), got \(1, 5, 1\); pass a classifier, or pass",
        ),
    ],
)
def test_outputs_without_logits_are_refused(function: Callable[[Any, Tensor, Tensor], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        describe(Net(function), input_shape=SIDE)


ENDINGS: dict[str, tuple[str, Callable[[Any, Tensor, Tensor], Any]]] = {
    "softmax": ("softmax", lambda net, h, z: F.softmax(z, 1)),
    "method": ("softmax", lambda net, h, z: z.softmax(-1)),
    "module": ("softmax", lambda net, h, z: nn.Softmax(1)(z)),
    "log_softmax": ("log_softmax", lambda net, h, z: nn.LogSoftmax(dim=1)(z)),
    "exp of log_softmax": ("log_softmax", lambda net, h, z: z.log_softmax(1).exp()),
    "log of softmax": ("softmax", lambda net, h, z: torch.log(torch.softmax(z, 1))),
    "clamped": ("softmax", lambda net, h, z: z.softmax(1).clamp(1e-7, 1 - 1e-7)),
    "sigmoid": ("sigmoid", lambda net, h, z: torch.sigmoid(z)),
    "in place": ("sigmoid", lambda net, h, z: z.clone().sigmoid_()),
    "expit": ("sigmoid", lambda net, h, z: torch.special.expit(z)),
    "logsigmoid": ("log_sigmoid", lambda net, h, z: F.logsigmoid(z)),
    "in double": ("softmax", lambda net, h, z: z.softmax(1).double()),
    "detached": ("softmax", lambda net, h, z: z.softmax(1).detach()),
    "before the shape": ("softmax", lambda net, h, z: z[:, :, None, None].softmax(1).squeeze(3).flatten(1)),
    "with features": ("softmax", lambda net, h, z: {"feat": h, "prob": z.softmax(1)}),
    "with the class": ("softmax", lambda net, h, z: (z.softmax(1), z.argmax(1))),
    "named": ("sigmoid", lambda net, h, z: {"embedding": h, "logits": z.sigmoid()}),
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("scale", [1, 1e4])
def test_the_values_before_a_final_activation_are_the_logits(name: str, scale: float) -> None:
    """With ``scale`` the probabilities are saturated, 0 and 1, and have no gradient."""
    activation, function = ENDINGS[name]
    net = Net(function)
    with torch.no_grad():
        net.fc.weight *= scale
    ssa = check_equals_plain(net)
    assert ssa.info.output.activation == activation
    assert ssa.probability == ("sigmoid" if "sigmoid" in activation else "softmax")
    assert f"model: it ends in {activation}; the logits are the values before it" in ssa.info.notes


@pytest.mark.parametrize("ending", [lambda z: (z / 0.07).softmax(1), lambda z: torch.sigmoid(1e4 * z)])
def test_grad_cam_is_of_the_values_before_the_activation(ending: Callable[[Tensor], Tensor]) -> None:
    """The last layer's output is scaled, so no CAM is exact; Grad-CAM of z / 0.07 is that of z, up to the scale."""
    ssa = SSA(Net(lambda net, h, z: ending(z)), input_shape=SIDE)
    expected = SSA(Net(lambda net, h, z: z), seed="grad-cam", input_shape=SIDE)
    assert (ssa.seed_kind, ssa.seed_layer) == ("grad-cam", "blocks.3")
    torch.testing.assert_close(ssa(draw(2), [[0, 4]] * 2).seed, expected(draw(2), [[0, 4]] * 2).seed)


@pytest.mark.parametrize(
    ("function", "index"),
    [
        (lambda net, h, z: z.softmax(1)[:, 1:], [1, 2, 3, 4]),
        (lambda net, h, z: z.softmax(1)[:, [3, 0]], [3, 0]),
        (lambda net, h, z: z.softmax(1)[:, 1], [1]),
        (lambda net, h, z: z.T.sigmoid().T[:, [2, 1]], [2, 1]),
    ],
)
def test_the_shape_after_the_activation_is_taken_before_it(
    function: Callable[[Any, Tensor, Tensor], Any], index: list[int]
) -> None:
    net = Net(function)
    ssa = SSA(net, input_shape=SIDE)
    torch.testing.assert_close(ssa(draw(2)).logits, net.logits(draw(2))[:, index])


def test_a_softmax_of_ones_own_is_noted() -> None:
    def softmax(net: Net, h: Tensor, z: Tensor) -> Tensor:
        exponents = (z - z.amax(1, keepdim=True)).exp()
        return exponents / exponents.sum(1, keepdim=True)

    ssa = SSA(Net(softmax), input_shape=SIDE)
    (note,) = ssa(draw(1)).notes
    assert note.startswith("model: its outputs are positive and sum to 1, but no softmax was seen")
    assert ssa.seed_kind == "grad-cam"


def test_saturated_probabilities_without_an_activation_say_so() -> None:
    with pytest.raises(
        ValueError, match=r"gradient is zero .*; the outputs are probabilities of 0 or 1: let the model"
    ):
        inspect_model(Net(lambda net, h, z: 1 / (1 + (-1e6 * z.abs() - 200).exp())), input_shape=SIDE)


SQUEEZED: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "squeeze(1)": lambda net, h, z: z.squeeze(1),
    "squeeze()": lambda net, h, z: z.squeeze(),
    "indexed": lambda net, h, z: z[:, 0],
    "flattened": lambda net, h, z: z.flatten(),
    "view(-1)": lambda net, h, z: z.view(-1),
    "kept": lambda net, h, z: z,
    "sigmoid, squeezed": lambda net, h, z: z.sigmoid().squeeze(1),
    "squeezed, sigmoid": lambda net, h, z: torch.sigmoid(z.squeeze()),
    "with features": lambda net, h, z: (h, z.squeeze(1)),
    "with a loss": lambda net, h, z: (z.mean(), z.squeeze(1)),
    "a dict": lambda net, h, z: {"logits": z.squeeze(-1)},
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_one_logit_per_image_without_its_axis(name: str) -> None:
    ssa = check_equals_plain(Net(SQUEEZED[name], classes=1))
    assert ssa(draw(3)).classes.tolist() == [[0]] * 3
    grad_cam = SSA(Net(SQUEEZED[name], classes=1), seed="grad-cam", input_shape=SIDE)
    torch.testing.assert_close(grad_cam(draw(3)).cams, ssa(draw(3)).cams, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", [lambda net, h, z: z.squeeze(), lambda net, h, z: z.squeeze(0).softmax(-1)])
def test_several_logits_whose_axis_of_images_is_squeezed(function: Callable[[Any, Tensor, Tensor], Any]) -> None:
    check_equals_plain(Net(function))


class Exits(nn.Module):
    """A linear exit after each block, listed by ``order``."""

    def __init__(self, order: int) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.blocks = Pyramid().blocks
        self.exits = nn.ModuleList(nn.Linear(width, CLASSES) for width in (8, 12, 16, 20))
        self.order = order

    def forward(self, x: Tensor) -> list[Tensor]:
        logits = []
        for block, head in zip(self.blocks, self.exits, strict=True):
            x = block(x)
            logits.append(head(x.mean((2, 3))))
        return logits[:: self.order]


@pytest.mark.parametrize("order", [1, -1])
def test_the_last_exit_of_several_holds_the_logits(order: int) -> None:
    info = inspect_model(Exits(order), input_shape=SIDE)
    assert (info.seed.layer, info.seed.head, info.output.path) == ("blocks.3", "exits.3", (3 if order == 1 else 0,))


def test_an_embedding_by_a_layer_that_the_head_reads() -> None:
    """Both are the output of a linear layer, and of the same width."""
    net = Net(lambda net, h, z: (embedding := net.other_head(h), net.last(embedding)))
    net.last = nn.Linear(CLASSES, CLASSES)
    assert inspect_model(net, input_shape=SIDE).output.path == (1,)


def test_cosine_logits_beside_their_embedding() -> None:
    def cosine(net: Net, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        embedding = F.normalize(h)
        return embedding, 16 * embedding @ F.normalize(net.centers).T

    info = inspect_model(Net(cosine), input_shape=SIDE)
    assert (info.output.path, info.num_classes) == ((1,), CLASSES)


def test_an_output_whose_making_is_not_seen_is_refused_among_others() -> None:
    def by_numpy(net: Net, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return h, torch.from_numpy(h.detach().numpy() @ net.fc.weight.detach().numpy().T)

    with pytest.raises(
        ValueError, match="model: expected one output to be the logits by the layers that it depends on"
    ):
        describe(Net(by_numpy), input_shape=SIDE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), [("googlenet", "inception5b"), ("inception_v3", "Mixed_7c")])
@pytest.mark.parametrize("wrap", [lambda each: each, lambda each: tuple(each)[::-1], lambda each: list(each)])
def test_auxiliary_heads_of_torchvision(name: str, layer: str, wrap: Callable[[Any], Any]) -> None:
    """Their forward in training returns logits and auxiliary logits, as a named tuple; here also as a plain one."""

    class InTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.get_model(name, weights=None, init_weights=False, num_classes=CLASSES)

        def forward(self, x: Tensor) -> Any:
            self.net.training = True  # the flag of the outermost module alone: its layers are in evaluation mode
            try:
                return wrap(self.net(x))
            finally:
                self.net.training = False

    torch.manual_seed(0)
    model = InTraining().eval()
    info = inspect_model(model, input_shape=299)
    assert (info.num_classes, info.seed.kind, info.seed.layer) == (CLASSES, "cam", f"net.{layer}")
    image = torch.randn(1, 3, *info.trace_size)
    with torch.no_grad():
        torch.testing.assert_close(info.forward(model, image).logits, model.net(image))


@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
def test_hugging_face_outputs(labels: bool) -> None:
    """A ModelOutput, its tuple, and with a loss (a 0-d tensor) in front."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)

    class Classifier(nn.Module):
        def __init__(self, return_dict: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.return_dict = transformers.ResNetForImageClassification(config), return_dict

        def forward(self, x: Tensor) -> Any:
            target = torch.zeros(len(x), dtype=torch.long) if labels else None
            return self.net(x, labels=target, output_hidden_states=True, return_dict=self.return_dict)

    found = []
    for return_dict in (True, False):
        model = Classifier(return_dict).eval()
        info = inspect_model(model, input_shape=SIDE)
        with torch.no_grad():
            torch.testing.assert_close(info.forward(model, draw(2)).logits, model.net(draw(2)).logits)
        assert info.seed.kind == "cam"
        found.append(info.seed.layer)
    assert found[0] == found[1]


def test_a_final_activation_may_not_disappear_silently() -> None:
    net = Net(lambda net, h, z: z.softmax(1))
    ssa = SSA(net, input_shape=SIDE)
    net.function = lambda net, h, z: z
    with pytest.raises(
        ValueError, match="expected an output that ends in softmax, as on the sample image, got another"
    ):
        ssa(draw(1))


def test_tiles_and_the_receptive_field_read_no_logits() -> None:
    net = Net(lambda net, h, z: (h, z.softmax(1)))
    info = inspect_model(net, input_shape=SIDE)
    net.function = lambda net, h, z: None
    assert measure_receptive_field(net, info.stages).strides["blocks.3"] == 16
