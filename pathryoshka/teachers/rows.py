"""The pathology encoders, one call a model: a shape that several models share, and what is the model's own.

The shapes are those of timm, checked by building them; counts and GFLOP are written down here and tested against what
is built, so that a row can be read without torch. Files and conventions are those of the model cards and of the public
loaders of TRIDENT, slide2vec, lazyslide and eva, which run these files strictly; `facts_from` says where they disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pathryoshka.teachers.row import HALF, IMAGENET, Layout, Pixels, Row, Summary

H_OPTIMUS: Pixels = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: Pixels = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: Pixels = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
ALL_MPP = (0.25, 0.5, 1.0, 2.0)
ND, APACHE = "cc-by-nc-nd-4.0", "apache-2.0"
FACTORS = {"cls": 1, "cls+mean": 2}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
WHOLE_VIEW = "the card resizes to 256 px and keeps the middle 224; here the whole view is resized, as students see it"


@dataclass(frozen=True)
class Shape:
    """A network: timm's name and arguments, and what building it gives."""

    architecture: str
    width: int
    depth: int
    num_heads: int
    stride: int
    prefix: int
    num_pos: int
    num_params: int
    gflop: float
    args: dict[str, Any]


def pathology(
    name: str,
    repository: str,
    file: str,
    shape: Shape,
    summary: Summary,
    pixels: Pixels,
    mpp: tuple[float, ...],
    licence: str,
    derivatives: bool | None,
    facts_from: str,
    *,
    gated: bool,
    precision: Literal["fp32", "bf16", "fp16"],
    role: Literal["teacher", "student"] = "teacher",
    summary_dim: int = 0,
    input_size: int = 224,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    rename: Layout | None = None,
    positions: Literal["timm", "plain", "dino"] = "timm",
) -> Row:
    """A row from its shape; `summary_dim` is given where the summary is more than CLS and the mean of the tokens."""
    at_hub = ":" not in repository
    return Row(
        name=name,
        source=f"hf:{repository}" if at_hub else repository,
        file=file,
        role=role,
        architecture=shape.architecture,
        model_args=shape.args,
        summary_dim=summary_dim or shape.width * FACTORS[summary],
        token_dim=shape.width,
        input_size=input_size,
        stride=shape.stride,
        num_prefix_tokens=shape.prefix,
        depth=shape.depth,
        num_heads=shape.num_heads,
        num_pos=shape.num_pos,
        positions=positions,
        mean=pixels[0],
        std=pixels[1],
        interpolation=interpolation,
        mpp=mpp,
        licence=licence,
        licence_source=f"https://huggingface.co/{repository}" if at_hub else LITEPATH_PAGE,
        gated=gated,
        derivatives=derivatives,
        summary=summary,
        num_params=shape.num_params,
        gflop=shape.gflop,
        precision=precision,
        rename=rename,
        facts_from=facts_from,
    )


# fmt: off
AT_224, AT_518 = {"img_size": 224}, {"img_size": 518}
SCALED = {**AT_224, "init_values": 1e-5}
VIRCHOW_ARGS = {**SCALED, "mlp_ratio": 5.3375, **SWIGLU, "global_pool": "", "dynamic_img_size": True}
VIRCHOW2_ARGS = {**VIRCHOW_ARGS, "reg_tokens": 4}
UNI2_ARGS = {
    **SCALED, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True, **SWIGLU, "reg_tokens": 8, "dynamic_img_size": True,
}
FLASH_ARGS = {**SCALED, "mlp_ratio": 2048 / 384, **SWIGLU}
H0_MINI_ARGS = {**SCALED, "mlp_ratio": 2.66667 * 2, **SWIGLU}
# DINOv2's hidden width: two thirds of four widths, rounded up to a multiple of 8, and twice that for the gate
HIBOU_B_ARGS = {**SCALED, "mlp_ratio": 4096 / 768, **SWIGLU}
HIBOU_L_ARGS = {**SCALED, "mlp_ratio": 5472 / 1024, **SWIGLU}
GIGAPATH_ARGS = {**SCALED, "patch_size": 16, "mlp_ratio": 5.33334}
CONCH_ARGS = {**AT_224, "init_values": 1e-6}  # positions for 224 px, fed 448

#                                                 width, depth, heads, patch, prefix, positions, parameters, GFLOP
SMALL_16 = Shape("vit_small_patch16_224",               384, 12,  6, 16, 1,  197,    21_665_664,   9.2, AT_224)
SMALL_8 = Shape("vit_small_patch8_224",                 384, 12,  6,  8, 1,  785,    21_670_272,  44.8, AT_224)
SMALL_14 = Shape("vit_small_patch14_dinov2",            384, 12,  6, 14, 1,  257,    21_628_800,  12.2, AT_224)
BASE_16 = Shape("vit_base_patch16_224",                 768, 12, 12, 16, 1,  197,    85_798_656,  35.1, AT_224)
BASE_8 = Shape("vit_base_patch8_224",                   768, 12, 12,  8, 1,  785,    85_807_872, 156.3, AT_224)
BASE_14 = Shape("vit_base_patch14_dinov2",              768, 12, 12, 14, 1,  257,    85_724_928,  46.3, AT_224)
BASE_14_REG = Shape("vit_base_patch14_reg4_dinov2",     768, 12, 12, 14, 5,  256,    85_727_232,  47.1, AT_224)
LARGE_16 = Shape("vit_large_patch16_224",              1024, 24, 16, 16, 1,  197,   303_350_784, 123.1, SCALED)
LARGE_14 = Shape("vit_large_patch14_dinov2",           1024, 24, 16, 14, 1,  257,   303_227_904, 162.0, SCALED)
LARGE_14_518 = Shape("vit_large_patch14_reg4_dinov2",  1024, 24, 16, 14, 5, 1369,   304_370_688, 164.6, AT_518)
GIANT_14 = Shape("vit_giant_patch14_dinov2",           1536, 40, 24, 14, 1, 1370, 1_136_479_232, 598.8, AT_518)
GIANT_14_REG = Shape("vit_giant_patch14_reg4_dinov2",  1536, 40, 24, 14, 5,  256, 1_134_774_272, 608.3, SCALED)

VIRCHOW_SHAPE = Shape("vit_huge_patch14_224",          1280, 32, 16, 14, 1,  257,   631_229_184, 334.8, VIRCHOW_ARGS)
VIRCHOW2_SHAPE = Shape("vit_huge_patch14_224",         1280, 32, 16, 14, 5,  261,   631_239_424, 340.1, VIRCHOW2_ARGS)
UNI2_SHAPE = Shape("vit_giant_patch14_224",            1536, 24, 24, 14, 9,  256,   681_394_176, 370.9, UNI2_ARGS)
GIGAPATH_SHAPE = Shape("vit_giant_patch14_dinov2",     1536, 40, 24, 16, 1,  197, 1_134_953_984, 456.2, GIGAPATH_ARGS)
FLASH_SHAPE = Shape("vit_small_patch16_224",            384, 12,  6, 16, 1,  197,    21_681_024,   9.2, FLASH_ARGS)
H0_MINI_SHAPE = Shape("vit_base_patch14_reg4_dinov2",   768, 12, 12, 14, 5,  256,    85_739_520,  47.1, H0_MINI_ARGS)
HIBOU_B_SHAPE = Shape("vit_base_patch14_reg4_dinov2",   768, 12, 12, 14, 5,  257,    85_739_520,  47.1, HIBOU_B_ARGS)
HIBOU_L_SHAPE = Shape("vit_large_patch14_reg4_dinov2", 1024, 24, 16, 14, 5,  257,   303_657_216, 164.8, HIBOU_L_ARGS)
OPEN_MIDNIGHT_SHAPE = Shape("vit_giant_patch14_reg4_dinov2", 1536, 40, 24, 14, 5,  257, 1_134_774_272, 608.3, SCALED)
CONCH_SHAPE = Shape("vit_large_patch16_224",           1024, 24, 16, 16, 1,  197,   306_109_184, 538.4, CONCH_ARGS)
LITE_T_SHAPE = Shape("vit_tiny_patch16_224",            192, 12,  3, 16, 1,  197,     5_724_096,   2.5, AT_224)
LITE_S_SHAPE = Shape("vit_small_patch16_224",           384, 12,  6, 16, 1,  197,    22_061_952,   9.2, AT_224)
LITE_B_SHAPE = Shape("vit_base_patch16_224",            768, 12, 12, 16, 1,  197,    86_588_160,  35.1, AT_224)

LITEPATH = "github:caiyu6666/LitePath/releases/download/v1.0.0/ckpts.zip"
LITEPATH_PAGE = "https://github.com/caiyu6666/LitePath"
KAIKO = "1aurent/vit_{}_224.kaiko_ai_towards_large_pathology_fms"
BIN, SAFE = "pytorch_model.bin", "model.safetensors"

TEACHERS = (
    pathology("virchow", "paige-ai/Virchow", BIN, VIRCHOW_SHAPE, "cls+mean", IMAGENET, (0.5,), APACHE, True,
              "card: CLS joined to the mean of the tokens; TRIDENT loads the file strictly",
              gated=True, precision="fp16"),
    pathology("virchow2", "paige-ai/Virchow2", BIN, VIRCHOW2_SHAPE, "cls+mean", IMAGENET, ALL_MPP, ND, False,
              "card: CLS joined to the mean of the tokens, registers left out, fp16; eva takes CLS alone",
              gated=True, precision="fp16"),
    pathology("uni", "MahmoodLab/UNI", BIN, LARGE_16, "cls", IMAGENET, (0.5,), ND, False,
              "card; TRIDENT loads the file strictly", gated=True, precision="fp16"),
    pathology("uni2_h", "MahmoodLab/UNI2-h", BIN, UNI2_SHAPE, "cls", IMAGENET, (0.5,), ND, False,
              "card; TRIDENT runs it in bf16", gated=True, precision="bf16"),
    pathology("h_optimus_0", "bioptimus/H-optimus-0", BIN, GIANT_14_REG, "cls", H_OPTIMUS, (0.5,), APACHE, True,
              "card: fp16", gated=True, precision="fp16"),
    pathology("h_optimus_1", "bioptimus/H-optimus-1", BIN, GIANT_14_REG, "cls", H_OPTIMUS, (0.5,), ND, False,
              "card: architecture as H-optimus-0, fp16", gated=True, precision="fp16"),
    pathology("h0_mini", "bioptimus/H0-mini", SAFE, H0_MINI_SHAPE, "cls+mean", H_OPTIMUS, (0.5,), ND, False,
              "THUNDER joins CLS to the mean of the tokens, TRIDENT takes CLS alone; that its hub config is this timm "
              "shape is inferred from its arguments and its 85.7 M parameters", gated=True, precision="fp16"),
    pathology("gigapath", "prov-gigapath/prov-gigapath", BIN, GIGAPATH_SHAPE, "cls", IMAGENET, (0.5,),
              "apache-2.0 with conditions", None, f"card and TRIDENT; {WHOLE_VIEW}", gated=True, precision="fp16"),
    pathology("gigapath_flash", "prov-gigapath/prov-gigapath-flash", BIN, FLASH_SHAPE, "cls", IMAGENET, (0.5,), APACHE,
              True, f"its tile_encoder.py, which builds this shape; {WHOLE_VIEW}", gated=True, precision="fp16"),
    pathology("phikon", "owkin/phikon", BIN, BASE_16, "cls", IMAGENET, (0.5,), "owkin-non-commercial", None,
              "card: ViTModel of transformers, CLS, its pooler unused", gated=False, precision="fp32",
              interpolation="bilinear", rename="transformers", positions="plain"),
    pathology("phikon_v2", "owkin/phikon-v2", SAFE, LARGE_16, "cls", IMAGENET, (0.5,), "owkin-non-commercial",
              None, "card: Dinov2Model of transformers, CLS; 197 positional rows follow from its 303.4 M parameters",
              gated=False, precision="fp32", rename="transformers", positions="plain"),
    pathology("hibou_b", "histai/hibou-b", SAFE, HIBOU_B_SHAPE, "cls", HIBOU, (0.5,), APACHE, True,
              "HistAI's build_model: SwiGLU, registers, positions antialiased; lazyslide takes CLS",
              gated=True, precision="fp32", rename="transformers"),
    pathology("hibou_l", "histai/hibou-L", SAFE, HIBOU_L_SHAPE, "cls", HIBOU, (0.5,), APACHE, True,
              "as Hibou-B; SwiGLU also follows from the published 303.7 M parameters and 164.85 GFLOP",
              gated=True, precision="fp32", rename="transformers"),
    pathology("midnight_12k", "kaiko-ai/midnight", SAFE, GIANT_14, "cls+mean", HALF, ALL_MPP, "mit", True,
              "card: Dinov2Model of transformers, CLS joined to the mean of the tokens (eva takes CLS); 1370 rows of "
              "positions follow from its 1.14 B parameters, and a file with another square grid is taken as it is",
              gated=False, precision="fp16", rename="transformers", positions="plain"),
    pathology("openmidnight", "SophontAI/OpenMidnight", "teacher_checkpoint_load.pt", OPEN_MIDNIGHT_SHAPE, "cls",
              IMAGENET, ALL_MPP, APACHE, True, "card: dinov2_vitg14_reg of torch.hub with its positions for 224 px",
              gated=True, precision="fp16"),
    pathology("gpfm", "majiabo/GPFM", "GPFM.pth", LARGE_14, "cls", IMAGENET, (0.25, 0.5), ND, False,
              "lazyslide loads the hub's file strictly, eva that of the GitHub release; tiles are of level 0; the hub "
              "copy says MIT, the repository ND", gated=False, precision="fp16", rename="dinov2_train"),
    pathology("conch_v1_5", "MahmoodLab/conchv1_5", "pytorch_model_vision.bin", CONCH_SHAPE, "attention", IMAGENET,
              (0.5,), ND, False, "TITAN's conch_v1_5.py: all tokens pooled by one query of 8 heads; 197 rows of "
              "positions are its default, and a file with another square grid is taken as it is",
              gated=True, precision="fp16",
              summary_dim=768, input_size=448, interpolation="bilinear", rename="conch", positions="dino"),
    *(pathology(f"kaiko_{name}", KAIKO.format(repository), SAFE, shape, "cls", HALF, ALL_MPP, "kaiko-non-commercial",
                None, "TRIDENT and eva; licence not read", gated=False, precision="fp32", interpolation="bilinear")
      for name, repository, shape in (
          ("s16", "small_patch16", SMALL_16), ("s8", "small_patch8", SMALL_8), ("b16", "base_patch16", BASE_16),
          ("b8", "base_patch8", BASE_8))),
    pathology("kaiko_l14", "1aurent/vit_large_patch14_reg4_dinov2.kaiko_ai_towards_large_pathology_fms", SAFE,
              LARGE_14_518, "cls", HALF, ALL_MPP, "kaiko-non-commercial", None,
              "TRIDENT: positions for 518 px, fed 224; licence not read", gated=False, precision="fp32",
              interpolation="bilinear"),
    *(pathology(f"lunit_{name}", f"1aurent/vit_small_patch{patch}_224.lunit_dino", SAFE, shape, "cls", LUNIT,
                (0.25, 0.5), "lunit-non-commercial", None, "Lunit's release by way of the hub copy; licence not read",
                gated=False, precision="fp32")
      for name, patch, shape in (("s16", 16, SMALL_16), ("s8", 8, SMALL_8))),
)

STUDENTS = (
    pathology("pathryoshka_b", "SchuefflerLab/Pathryoshka-B", SAFE, BASE_14_REG, "cls", IMAGENET, (), "unknown", None,
              "card: ViT-B/14 with registers in timm's layout; that there are 4, and CLS as the summary, is inferred",
              gated=True, precision="fp32", role="student"),
    pathology("distillpath_ks16", "RamonK/DistillPath-KS16-Virchow2", SAFE, SMALL_16, "cls", HALF, (), "other", None,
              "card: timm's vit_small_patch16_224, started from kaiko S/16", gated=False, precision="fp32",
              role="student"),
    pathology("distillpath_is16", "RamonK/DistillPath-IS16-Virchow2", SAFE, SMALL_16, "cls", IMAGENET, (), "other",
              None, "card: timm's vit_small_patch16_224, started from ImageNet", gated=False, precision="fp32",
              role="student"),
    *(pathology(name, LITEPATH, f"ckpts/{file}.pth", shape, "projected", IMAGENET, (), ND, False,
                "the repository's models/litefm.py, which loads the file strictly", gated=False, precision="fp32",
                role="student", summary_dim=1024, rename="litefm")
      for name, file, shape in (
          ("litefm", "LiteFM", LITE_S_SHAPE), ("litefm_s", "LiteFM-S", LITE_T_SHAPE),
          ("litefm_l", "LiteFM-L", LITE_B_SHAPE))),
    *(pathology(name, "luoxd96/PathAGG", f"{folder}/{SAFE}", shape, "cls", IMAGENET, (), "cc-by-nc-4.0", True,
                "opening of the card: sub-folder, width, patch and pixels; its file's name, and that it has no "
                "registers, could not be checked: another layout is refused", gated=False, precision="fp32",
                role="student")
      for name, folder, shape in (("pathagg_b", "vitb", BASE_14), ("pathagg_s", "vits", SMALL_14))),
)
# fmt: on
