import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from persephonee.experiments.studies.imagenet_networks import (
    NETWORKS,
    SOURCE,
    cut_to_classes,
    resnet50_v1,
    tiny_imagenet_classes,
    write_cut_weights,
)
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import ModelFileError
from tests.conftest import real_data


def test_the_first_convolution_of_a_stage_halves_the_map_and_epsilon_is_keras_s():
    model = resnet50_v1(num_classes=3, in_channels=3)
    for stage in (model.layer2, model.layer3, model.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((2, 2), (1, 1))
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}


def test_a_cut_classifier_gives_the_logits_of_its_classes():
    weight, bias = torch.randn(10, 4), torch.randn(10)
    cut = cut_to_classes({"fc.weight": weight.half(), "fc.bias": bias}, (7, 2))
    features = torch.randn(5, 4)
    whole = torch.nn.functional.linear(features, weight.half().float(), bias)
    torch.testing.assert_close(torch.nn.functional.linear(features, cut["fc.weight"], cut["fc.bias"]), whole[:, [7, 2]])


def test_a_class_that_the_weights_lack_is_refused():
    with pytest.raises(ModelFileError, match=r"lacks class \[10\]"):
        cut_to_classes({"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}, (3, 10))


def photographs(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = pq.read_table(real_data("tiny-imagenet-200/validation.parquet"))
    chosen = rows.take(np.linspace(0, len(rows) - 1, count).astype(int)).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((size, size)) for row in chosen]
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    return images.float() / 255, torch.tensor([row["label"] for row in chosen])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("resnet50", 0.605), ("mobilenet_v2", 0.430)])
def test_the_last_exit_knows_photographs_as_well_as_is_known_of_the_weights(tmp_path, name, published):
    classes = tiny_imagenet_classes(real_data("tiny-imagenet-200/classes.json"))
    known = NETWORKS[name]
    network = build_network(
        known.backbone,
        num_exits=6,
        num_classes=len(classes),
        in_channels=3,
        input_size=224,
        weights=write_cut_weights(name, real_data(f"weights/{known.file}"), classes, tmp_path),
        mean=known.mean,
        std=known.std,
        allowed=(SOURCE, "torchvision"),
    )
    images, labels = photographs(100, 224)
    with torch.no_grad():
        predictions = torch.cat([network.features(batch)[1].argmax(dim=1) for batch in images.split(10)])
    accuracy = (predictions == labels).float().mean().item()
    # three standard errors of 100 images
    assert accuracy == pytest.approx(published, abs=0.15)
