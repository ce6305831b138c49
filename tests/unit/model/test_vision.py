"""The tower gives what transformers and timm give, for every family, and refuses what it cannot open."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from support.hub_folders import ENCODERS, PATCH, SIZE, VISION_SHAPE, WIDTH
from timm.models import save_for_hf
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperConfig,
)

from panollava.crop.cameras import point_directions, token_directions
from panollava.crop.crop import Crop
from panollava.model import families
from panollava.model.vision import VisionTower

Backbone = Callable[[str], Path]
PLAIN = {
    "siglip": (SiglipVisionModel, 0),
    "siglip_vision_only": (SiglipVisionModel, 0),
    "siglip2": (SiglipVisionModel, 0),
    "clip": (CLIPVisionModel, 1),
    "clip_vision_only": (CLIPVisionModel, 1),
    "dinov2": (Dinov2Model, 1),
    "dinov2_registers": (Dinov2WithRegistersModel, 5),
}
"""Class that opens each family in plain transformers, and its number of prefix tokens."""


def views(height: int = SIZE, width: int = SIZE, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def reference(name: str, folder: Path, pixels: Tensor, layer: int = -1) -> Tensor:
    """Features by the library's own model and processor."""
    if name == "timm_vit":
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, dynamic_img_size=True).eval()
        data = timm.data.resolve_model_data_config(model)
        normal = (pixels / 255 - torch.tensor(data["mean"])[:, None, None]) / torch.tensor(data["std"])[:, None, None]
        if layer != -1:
            return model.forward_intermediates(normal, indices=[3 + layer], intermediates_only=True, output_fmt="NLC")[
                0
            ]
        return model.forward_features(normal)[:, model.num_prefix_tokens :]
    cls, prefix = PLAIN[name]
    if name == "clip_vision_only":
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        normal = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    else:
        processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
        normal = processor(list(pixels), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    other_size = "dinov2" not in name and pixels.shape[-2:] != (SIZE, SIZE)
    arguments = {"interpolate_pos_encoding": True} if other_size else {}
    output = cls.from_pretrained(folder).eval()(normal, output_hidden_states=True, **arguments)
    return (output.last_hidden_state if layer == -1 else output.hidden_states[layer])[:, prefix:]


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_features_are_the_librarys_own(name: str, backbone: Backbone) -> None:
    tower = VisionTower.from_pretrained(backbone(name))
    pixels = views()
    features = tower(pixels)
    assert tower.grid == (4, 4)
    assert features.shape == (2, 16, tower.width)
    torch.testing.assert_close(features, reference(name, backbone(name), pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(tower(pixels.float() / 255), features, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_features_of_an_earlier_layer_and_another_size(name: str, backbone: Backbone) -> None:
    tower = VisionTower.from_pretrained(backbone(name), image_size=(40, 48), feature_layer=-2)
    pixels = views(40, 48)
    assert tower.grid == (5, 6)
    expected = reference(name, backbone(name), pixels, layer=-2)
    torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_all_that_trains_gets_a_gradient_and_blocks_are_counted_from_the_end(name: str, backbone: Backbone) -> None:
    tower = VisionTower.from_pretrained(backbone(name), feature_layer=-2)
    tower.train_only("all")
    tower(views()).square().mean().backward()
    trained = {key for key, weight in tower.named_parameters() if weight.requires_grad}
    assert trained == {key for key, weight in tower.named_parameters() if weight.grad is not None}
    assert trained > {
        f"{key}.{part}"
        for key, block in tower.named_modules()
        if block is tower.blocks[0]
        for part, _ in block.named_parameters()
    }
    tower.train_only(1)
    expected = {id(weight) for weight in tower.blocks[1].parameters()}
    assert {id(weight) for weight in tower.parameters() if weight.requires_grad} == expected
    tower.train_only(0)
    assert not any(weight.requires_grad for weight in tower.parameters())
    with pytest.raises(ValueError, match=r"vision_trainable_blocks=3.*pass through 2 blocks"):
        tower.train_only(3)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("siglip", (0.5,) * 3, (0.5,) * 3),
        ("siglip2", (0.4, 0.5, 0.6), (0.5,) * 3),
        ("clip_vision_only", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ("dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_preprocessing_is_the_checkpoints_or_its_familys(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], backbone: Backbone
) -> None:
    tower = VisionTower.from_pretrained(backbone(name))
    assert tower.normalisation == (mean, std)
    assert tower.image_size == (SIZE, SIZE)  # DINOv2's own weights are for 48, its processor says 32


@torch.no_grad()
def test_a_file_or_a_relative_timm_name_stands_for_its_folder(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = VisionTower.from_pretrained(backbone("timm_vit"))(views())
    by_file = VisionTower.from_pretrained(backbone("timm_vit") / "model.safetensors")
    assert torch.equal(by_file(views()), expected)
    shutil.copytree(backbone("timm_vit"), tmp_path / "timm" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    monkeypatch.chdir(tmp_path)
    by_name = VisionTower.from_pretrained("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert torch.equal(by_name(views()), expected)


@torch.no_grad()
def test_lower_precision_normalises_in_fp32(backbone: Backbone) -> None:
    """Also where a whole module is cast, or built in a lower type, as transformers does with an export."""
    tower = VisionTower.from_pretrained(backbone("clip"), dtype=torch.bfloat16)
    exact = VisionTower.from_pretrained(backbone("clip"))
    assert tower(views()).dtype == torch.bfloat16
    assert torch.equal(tower.normalise(views()), exact.normalise(views()))
    normalised = exact.normalise(views())
    mean, std = exact.normalisation
    torch.set_default_dtype(torch.bfloat16)
    try:
        built = VisionTower(exact.model, image_size=exact.image_size, mean=mean, std=std)
    finally:
        torch.set_default_dtype(torch.float32)
    for lower in (built, exact.bfloat16()):
        assert torch.equal(lower.normalise(views()), normalised)


def test_a_name_that_does_not_exist_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"model\.vision\.name='nobody/nothing' could not be opened.*folder"):
        VisionTower.from_pretrained("nobody/nothing")


def test_pickled_weights_are_refused_with_the_recipe(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(backbone("siglip"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    for name in (folder, folder / "pytorch_model.bin"):
        with pytest.raises((FileNotFoundError, ValueError), match=r"never opened.*save_pretrained\('converted'\)"):
            VisionTower.from_pretrained(name)


def test_a_checkpoint_that_lacks_weights_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(backbone("clip"), folder)
    shutil.copy(backbone("siglip") / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.vision\.name=.*weights are missing"):
        VisionTower.from_pretrained(folder)


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    config = Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_patches=16
    )
    Siglip2VisionModel(config).save_pretrained(tmp_path / "naflex")
    with pytest.raises(ValueError, match="naflex"):
        VisionTower.from_pretrained(tmp_path / "naflex")
    arguments = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    resnet = timm.create_model("resnet10t", pretrained=False, **arguments)
    save_for_hf(resnet, tmp_path / "resnet", model_args=arguments, safe_serialization=True)
    with pytest.raises(ValueError, match="resnet10t is not a ViT"):
        VisionTower.from_pretrained(tmp_path / "resnet")


def test_impossible_settings_name_what_is_possible(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"feature_layer=-4: the encoder has 3 blocks"):
        VisionTower.from_pretrained(backbone("siglip"), feature_layer=-4)
    with pytest.raises(ValueError, match="smaller than one patch"):
        VisionTower.from_pretrained(backbone("siglip"), image_size=4)
    with pytest.raises(ValueError, match=r"takes \(3, 32, 32\)"):
        VisionTower.from_pretrained(backbone("siglip"))(views(40, 40))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_each_row_and_column_of_its_views_and_tokens_look_where_patches_do(
    name: str, backbone: Backbone
) -> None:
    tower = VisionTower.from_pretrained(backbone(name), image_size=(36, 43))
    pixels = views(*tower.image_size).float().div(255).requires_grad_()
    tower(pixels).square().sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad.abs().sum(dim=(0, 1))
    assert seen.sum(dim=0).all()
    assert seen.sum(dim=1).all()
    cameras = Crop.from_spec({"type": "anyres_e2p", "overlap": 0.0}, view_size=tower.image_size).camera_rows
    rows, columns = (PATCH * torch.arange(count) + PATCH / 2 for count in tower.grid)
    height, width = tower.image_size
    centres = point_directions(cameras[1:], columns / width, rows / height)  # a global view has a border
    torch.testing.assert_close(token_directions(cameras[1:], tower.grid), centres)


@torch.no_grad()
def test_a_size_of_broken_patches_keeps_its_grid_and_positions_and_earlier_runs_keep_the_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As google/siglip-so400m-patch14-384: 27.4 patches a side, of which the encoder has always seen 27."""
    caplog.set_level("INFO", logger="panollava.model.families")
    side, pixels = SIZE + 4, views(SIZE + 4, SIZE + 4)
    siglip = SiglipVisionModel(SiglipVisionConfig(**{**VISION_SHAPE, "image_size": side}, intermediate_size=48)).eval()
    siglip.save_pretrained(tmp_path / "siglip")
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(tmp_path / "siglip")
    arguments = {"img_size": side, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **arguments).eval()
    vit.pretrained_cfg["input_size"] = (3, side, side)
    save_for_hf(vit, tmp_path / "timm", model_args=arguments, safe_serialization=True)
    for name, own in (
        ("siglip", lambda normal: siglip(pixel_values=normal).last_hidden_state),
        ("timm", lambda normal: vit.forward_features(normal)[:, 1:]),
    ):
        caplog.clear()
        tower = VisionTower.from_pretrained(tmp_path / name)
        assert (tower.image_size, tower.grid) == ((SIZE, SIZE), (4, 4))
        assert caplog.messages == ["Views have (32, 32) pixels: (36, 36) is no whole number of patches of (8, 8)."]
        expected = own(tower.normalise(pixels))
        torch.testing.assert_close(tower(pixels[..., :SIZE, :SIZE]), expected, atol=1e-5, rtol=0)
        earlier = VisionTower.from_pretrained(tmp_path / name, image_size=side, kept_size=(side, side))
        assert earlier.image_size == (side, side)
        torch.testing.assert_close(earlier(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"),
        *("xcit_nano_12_p16_224", "vit_small_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_384"),
        *("vit_relpos_small_patch16_224", "vit_base_patch16_dinov3"),
    ],
)
def test_the_grid_of_a_timm_model_has_its_tokens(name: str) -> None:
    config = timm_config(name)
    families.check_architecture(config, name)
    size = families.use_image_size(config, families._native_size(config))
    model = families._meta_timm(config)
    height, width = families.pair(model.patch_embed.patch_size)
    tokens = model.forward_features(torch.empty(1, 3, *size, device="meta")).shape[1] - model.num_prefix_tokens
    assert tokens == (size[0] // height) * (size[1] // width)


@pytest.mark.parametrize("name", ["vit_base_r50_s16_224", "vit_small_r26_s32_224", "vitamin_small_224"])
def test_a_timm_model_that_starts_with_a_convolutional_network_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has a convolutional network before its blocks"):
        families.check_architecture(timm_config(name), name)


def timm_config(name: str) -> TimmWrapperConfig:
    config = TimmWrapperConfig(architecture=name, model_args={})
    config.pretrained_cfg = None
    return config


def test_running_statistics_of_blocks_that_train_stay_as_no_checkpoint_has_them(backbone: Backbone) -> None:
    tower = VisionTower.from_pretrained(backbone("siglip"))
    tower.blocks[-1].layer_norm2 = Swapped()  # as in the blocks of timm's xcit_*
    tower.train_only(1)
    tower.train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower(views()).square().mean().backward()
    assert tower.blocks[-1].training
    assert tower.blocks[-1].layer_norm2.norm.weight.grad is not None
    assert any("running_mean" in name for name in before)
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, before[name]), name


class Swapped(torch.nn.Module):
    """BatchNorm of tokens ``(n, N, D)``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.transpose(1, 2)).transpose(1, 2)
