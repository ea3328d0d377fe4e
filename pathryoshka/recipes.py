"""The named runs. A recipe is a function that returns a complete, validated tree; a variant is another recipe with a
few fields changed.

What is public about the published model: its teachers, that the students are ViT-B/14 and ViT-S/14 with registers of
87 M and 22 M parameters, heads per teacher at several widths, augmentation by cropping, and that it is 86-92 % smaller
than its teachers. Its loss, widths, data and schedule are not, so `paper_b` and `paper_s` say at every value whether
it is the paper's or ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from pathryoshka.config import (
    ConfigError,
    Data,
    Export,
    Heads,
    Loss,
    Optim,
    Plan,
    Run,
    Standardise,
    Student,
    Teacher,
    Teachers,
    Train,
    Views,
    make_run,
    overlay,
)


def demo() -> Run:
    """Three real ImageNet teachers into a ResNet of 0.38 M parameters at 128 px: the production path on two cores.

    A convolutional student learns from thousands of views where a ViT of its size needs hundreds of thousands, and a
    narrow ResNet of four blocks more from each than a MobileNetV3 of 0.57 M: after 40,000 views of real tissue .54
    of the teachers' summaries are unexplained instead of .58, and LC25000 is .72 instead of .62 (unseen images).
    """
    lite = {"device": "cpu", "input_size": 128, "batch_size": 16}
    return Run(
        name="demo",
        recipe="demo",
        views=Views(size=128, mix_share=0.5),
        plan=Plan(num_views=4800),
        teachers=Teachers(
            models={f"lite{n}": Teacher.model_validate({"model": f"efficientnet_lite{n}", **lite}) for n in range(3)},
            tokens_per_view=4,
        ),
        standardise=Standardise(num_views=1000),
        student=Student(
            model="resnet26",
            model_args={"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96]},
            widths=(48, 96, 192, 384),
            heads=Heads(kind="tied"),  # separate ones would be nearly twice the gradients to send around at each step
        ),
        loss=Loss(widths_per_step=2),
        optim=Optim(lr=3e-3, warmup_share=0.1),
        train=Train(
            device="cpu",
            num_workers=2,
            global_batch=64,
            micro_batch=32,
            zero_stage=1,
            checkpoint_every=40,
            log_every=10,
        ),
    )


def debug() -> Run:
    """The whole path with mock teachers at 32 px: seconds of work, for finding what is broken before it costs money."""
    mock = {"device": "mock", "batch_size": 16}
    rows = {"mock0": "mock:64x48", "mock1": "mock:96x32"}  # of unlike widths, so that a mix-up shows
    return Run(
        name="debug",
        recipe="debug",
        views=Views(size=32),
        plan=Plan(num_views=512, window=2),
        teachers=Teachers(models={name: Teacher.model_validate({"model": row, **mock}) for name, row in rows.items()}),
        standardise=Standardise(num_views=128),
        student=Student(
            model="vit_tiny_patch16_224",
            model_args={"patch_size": 8, "embed_dim": 48, "depth": 2},
            widths=(16, 32, 48),
        ),
        train=Train(device="cpu", num_workers=2, global_batch=32, micro_batch=16, checkpoint_every=5, log_every=2),
    )


def paper_b() -> Run:
    """The published student of 87 M parameters: ViT-B/14 with registers, from Virchow2, UNI2-h and H-optimus-1."""
    return Run(
        name="paper_b",  # ours
        recipe="paper_b",  # ours
        data=Data(
            read_tasks=16,  # ours: what 16 GPUs eat
            prefetch_batches=4,  # ours
        ),
        views=Views(
            size=224,  # paper: the released model's input
            scale=(0.4, 1.0),  # ours; "cropping-based augmentation" is the paper's, its numbers are not public
            flip=True,  # ours
            quarter_turns=True,  # ours: tissue has no up
            stain=0.05,  # ours
            mix="cut",  # ours
            mix_share=0.5,  # ours: students of unseen patients gained from half the views mixed
            photometric=0.0,  # ours
        ),
        plan=Plan(
            num_views=102_400_000,  # ours: 100 k steps of 1024, the length of the published recipes nearest to it
            window=64,  # ours
        ),
        teachers=Teachers(
            models={
                "virchow2": Teacher(
                    model="virchow2",  # paper
                    device="cuda",  # ours
                    replicas=4,  # ours: 14 teacher GPUs shared by size, for 2 of the student
                    precision="bf16",  # ours
                    batch_size=128,  # ours
                    compile=True,  # ours
                ),
                "uni2_h": Teacher(
                    model="uni2_h",  # paper
                    device="cuda",  # ours
                    replicas=4,  # ours
                    precision="bf16",  # ours
                    batch_size=128,  # ours
                    compile=True,  # ours
                ),
                "h_optimus_1": Teacher(
                    model="h_optimus_1",  # paper
                    device="cuda",  # ours
                    replicas=6,  # ours
                    precision="bf16",  # ours
                    batch_size=128,  # ours
                    compile=True,  # ours
                ),
            },
            tokens_per_view=64,  # ours: all 256 would be 2.2 MB a view
            max_in_flight=32,  # ours: two micro-batches a teacher GPU
        ),
        standardise=Standardise(
            summary="phi_s",  # ours: RADIO's transform; the paper says only that it is RADIO-style
            tokens="phi_s",  # ours
            num_views=16_384,  # ours: six times the widest summary, so that its covariance has full rank
        ),
        student=Student(
            model="vit_base_patch14_reg4_dinov2",  # paper: ViT-B/14 with registers; that there are 4 is timm's
            start="timm",  # ours: the paper's start is not public
            widths=(64, 128, 256, 384, 768),  # ours below 768; "several embedding dimensions" is the paper's
            pool="token",  # ours
            heads=Heads(
                kind="separate",  # paper: heads per teacher at several dimensions
                hidden=1536,  # ours: the widest teacher
            ),
            ema=0.999,  # ours
        ),
        loss=Loss(
            summary="angle",  # ours: C-RADIOv4's balanced angle
            tokens="mse",  # ours: PHI-S
            weights={},  # ours: every term is 1 for a predictor of the mean, so nothing needs a weight
            kinds={"summary": 1.0, "tokens": 1.0},  # ours
            widths_per_step=0,  # ours: all
            token_widths_per_step=1,  # ours: the full width and one more, a fifth of the cost of all
            teacher_drop=0.0,  # ours
            relation=0.0,  # ours
        ),
        optim=Optim(
            lr=1e-3,  # ours
            min_lr_share=0.01,  # ours
            weight_decay=0.02,  # ours
            betas=(0.9, 0.99),  # ours
            warmup_share=0.05,  # ours
            clip=1.0,  # ours
        ),
        train=Train(
            device="cuda",  # ours
            num_workers=2,  # ours
            global_batch=1024,  # ours
            micro_batch=128,  # ours
            precision="bf16",  # ours
            zero_stage=1,  # ours
            checkpoint_every=500,  # ours
            log_every=50,  # ours
            max_failures=-1,  # ours: spot machines come and go
        ),
        export=Export(
            licence="cc-by-nc-nd-4.0",  # ours: the teachers' gates call a model trained on their outputs a derivative
        ),
    )


def paper_s() -> Run:
    """The published student of 22 M parameters: `paper_b` with a ViT-S/14 and its widths."""
    changed = {
        "name": "paper_s",  # ours
        "recipe": "paper_s",  # ours
        "student": {
            "model": "vit_small_patch14_reg4_dinov2",  # paper: 22 M; patch size and registers as in paper_b
            "widths": (32, 64, 128, 256, 384),  # ours below 384
        },
        "optim": {
            "lr": 2e-3,  # ours: a smaller student takes a higher rate
        },
    }
    return make_run(overlay(paper_b().model_dump(), changed))


RECIPES: dict[str, Callable[[], Run]] = {f.__name__: f for f in (demo, debug, paper_b, paper_s)}


def recipe_by_name(name: str) -> Run:
    """The complete run that `name` stands for.

    Raises:
        ConfigError: there is no such recipe; the sentence names the nearest one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]()


def as_file(run: Run) -> dict[str, object]:
    """The tree of a run as `--config` reads it back: a teacher of its recipe that it does without is null there."""
    tree = run.model_dump(mode="json")
    missing = recipe_by_name(run.recipe).teachers.models.keys() - run.teachers.models.keys()
    tree["teachers"]["models"] |= dict.fromkeys(sorted(missing))
    return tree
