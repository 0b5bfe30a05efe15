"""Models of monai, whose images are of medicine."""

from typing import Any

from benchmarks.coverage.others.recipes import Models, floats, image, of, prefixed, several, steps

__all__: list[str] = ["MODELS"]


def _net(cls: str, *rest: Any, **given: Any) -> Any:
    return of(f"monai.networks.nets.{cls}", *rest, **given)


GREY, CUBE = image(32, 1), floats(1, 16, 16, 16)
PLAIN: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
DEEP: dict[str, Any] = PLAIN | {"spatial_dims": 3}
MODELS: Models = prefixed(
    "monai",
    {
        "UNet": _net("UNet", GREY, **PLAIN, channels=(8, 16), strides=(2,), num_res_units=1),
        "BasicUNet": _net("BasicUNet", GREY, **PLAIN, features=(8, 8, 8, 8, 8, 8)),
        "BasicUNetPlusPlus": _net("BasicUNetPlusPlus", GREY, **PLAIN, features=(8,) * 6),
        "AttentionUnet": _net("AttentionUnet", GREY, **PLAIN, channels=(8, 16), strides=(2,)),
        "SegResNet": _net("SegResNet", GREY, **PLAIN, init_filters=8, dropout_prob=0.1),
        "SegResNetVAE": _net(
            "SegResNetVAE", GREY, **PLAIN, init_filters=8, input_image_size=(32, 32)
        ),
        "DynUNet": _net(
            "DynUNet",
            GREY,
            **PLAIN,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 8, 8],
        ),
        "VNet": _net("VNet", floats(1, 16, 16), spatial_dims=2, in_channels=1, out_channels=2),
        "UNETR": _net(
            "UNETR",
            CUBE,
            in_channels=1,
            out_channels=2,
            img_size=(16, 16, 16),
            feature_size=4,
            hidden_size=16,
            mlp_dim=16,
            num_heads=2,
        ),
        "ViT": _net(
            "ViT",
            GREY,
            in_channels=1,
            img_size=(32, 32),
            patch_size=(8, 8),
            hidden_size=16,
            mlp_dim=16,
            num_layers=1,
            num_heads=2,
            spatial_dims=2,
            classification=True,
            num_classes=2,
        ),
        "ViTAutoEnc": _net(
            "ViTAutoEnc",
            GREY,
            in_channels=1,
            img_size=(32, 32),
            patch_size=(4, 4),
            hidden_size=16,
            mlp_dim=16,
            num_layers=1,
            num_heads=2,
            spatial_dims=2,
        ),
        "DenseNet": _net(
            "DenseNet", image(64, 1), **PLAIN, init_features=8, growth_rate=4, block_config=(2, 2)
        ),
        "SENet": _net("SEResNet50", image(64, 1), spatial_dims=2, in_channels=1, num_classes=2),
        "ResNet": _net(
            "ResNet",
            GREY,
            block="basic",
            layers=[1, 1, 1, 1],
            block_inplanes=[8, 8, 8, 8],
            spatial_dims=2,
            n_input_channels=1,
            num_classes=2,
        ),
        "EfficientNet": _net(
            "EfficientNetBN",
            image(64, 1),
            model_name="efficientnet-b0",
            pretrained=False,
            spatial_dims=2,
            in_channels=1,
            num_classes=2,
        ),
        "HighResNet": _net("HighResNet", GREY, spatial_dims=2, in_channels=1, out_channels=2),
        "AHNet": _net("AHNet", image(128, 1), spatial_dims=2, in_channels=1, out_channels=2),
        "FlexibleUNet": _net(
            "FlexibleUNet",
            image(64, 1),
            in_channels=1,
            out_channels=2,
            backbone="resnet18",
            spatial_dims=2,
        ),
        "VarAutoEncoder": _net(
            "VarAutoEncoder",
            GREY,
            spatial_dims=2,
            in_shape=(1, 32, 32),
            out_channels=1,
            latent_size=4,
            channels=(8, 8),
            strides=(2, 2),
        ),
        "Regressor": _net(
            "Regressor", GREY, in_shape=(1, 32, 32), out_shape=(2,), channels=(4, 8), strides=(2, 2)
        ),
        "GlobalNet": _net(
            "GlobalNet",
            GREY,
            image_size=[32, 32],
            spatial_dims=2,
            in_channels=1,
            num_channel_initial=4,
            depth=2,
        ),
        "MILModel": _net(
            "MILModel",
            floats(3, 3, 64, 64),
            num_classes=2,
            backbone="resnet18",
            pretrained=False,
            mil_mode="att",
        ),
        "DiffusionModelUNet": _net(
            "DiffusionModelUNet",
            several(GREY, steps),
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 16),
            attention_levels=(False, True),
            num_res_blocks=1,
            num_head_channels=8,
            norm_num_groups=8,
        ),
        "AutoencoderKL": _net(
            "AutoencoderKL",
            GREY,
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            num_res_blocks=(1, 1),
            channels=(8, 8),
            attention_levels=(False, False),
            latent_channels=2,
            norm_num_groups=4,
        ),
        "VQVAE": _net(
            "VQVAE",
            GREY,
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 8),
            num_res_channels=(8, 8),
            num_res_layers=1,
            num_embeddings=8,
            embedding_dim=8,
            downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
            upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
        ),
    },
)
