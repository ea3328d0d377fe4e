"""The one typed tree of a run.

A run is a frozen `Run`: sections of plain values, unknown keys refused with the nearest right name, everything that was
resolved saved with whatever the run makes. `recipes.py` holds the named trees; `load_run` lays a YAML file and
`--set section.key=value` over one of them.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Device = Literal["auto", "cpu", "cuda", "mock"]
Precision = Literal["fp32", "bf16", "fp16"]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
"""Several strings; one alone may be written without brackets."""
Standardiser = Literal["none", "global", "per_channel", "phi_s", "pca_whiten"]


class ConfigError(ValueError):
    """A run that cannot be: the sentence says which key and what to write instead."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    tiles: Names = Field((), description="URIs of tile data sets: folders that hold a _manifest.json")
    splits: Names = Field((), description="shards of these splits only; empty = every shard")
    deterministic: bool = Field(False, description="keep order end to end: same world size, bit-identical CPU weights")
    max_failed_share: float = Field(0.01, ge=0, le=1, description="share of undecodable tiles at which the run stops")
    read_tasks: int = Field(2, ge=1, description="segments read and decoded at the same time")
    prefetch_batches: int = Field(2, ge=1, le=8, description="micro-batches waiting in each train worker")


class Views(Section):
    seed: int = 0
    size: int = Field(224, ge=32, description="side of a view in pixels; what the student sees")
    per_tile: int = Field(0, ge=0, description="distinct views a tile; 0 = a new one at every draw")
    scale: tuple[float, float] = Field((0.4, 1.0), description="area of the crop as a share of the tile")
    flip: bool = True
    quarter_turns: bool = True
    stain: float = Field(0.05, ge=0, le=0.5, description="sigma of the jitter of each stain in HED space")
    mix: Literal["cut", "blend", "halves"] = Field("cut", description="how a view is mixed with its partner's")
    mix_share: float = Field(0.5, ge=0, le=1, description="share of plan entries that have a partner")
    photometric: float = Field(0.0, ge=0, le=1, description="strength of the student-only brightness/contrast jitter")


class Plan(Section):
    seed: int = 0
    num_views: int = Field(1_000_000, ge=1, description="views presented to the student in the whole run")
    window: int = Field(8, ge=1, description="row groups shuffled together: one segment")
    balance: Literal["none", "patient", "site", "label", "cluster"] = Field(
        "none", description="what is to count alike"
    )
    balance_power: float = Field(1.0, ge=0, le=1, description="0 = tiles as they come, 1 = equal shares")


class Teacher(Section):
    model: str = Field(description="row of the zoo, timm:<name> for any timm model, or your own module:function")
    weights: str | None = Field(None, description="file, folder or URI of the weights; none = where the row says")
    device: Device = "auto"
    replicas: int = Field(1, ge=1, description="actors to start")
    num_gpus: float | None = Field(None, ge=0, description="GPUs a replica, e.g. 0.5; none = 1 on CUDA, else 0")
    num_cpus: float | None = Field(None, ge=0, description="CPUs a replica; none = 0 on CUDA, else 1")
    resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources a replica asks for")
    accelerator_type: str | None = None
    batch_size: int = Field(64, ge=1, description="views a forward pass")
    precision: Precision | Literal["auto"] = Field("auto", description="auto = on a GPU what its row says, else fp32")
    compile: bool = False
    input_size: int | None = Field(None, description="pixels fed to the teacher; none = what its row says")
    mock_seconds: float = Field(0.0, ge=0, description="device mock: seconds a view takes")


class Teachers(Section):
    models: dict[str, Teacher] = Field(default_factory=dict)
    tokens_per_view: int = Field(0, ge=0, description="tokens kept a view, drawn by the view's key; 0 = all")
    start_timeout_s: float = 900
    max_in_flight: int = Field(8, ge=1, description="micro-batches inside the teacher stage at the same time")


class Store(Section):
    uri: str | None = Field(None, description="feature store: read where it has features, filled by `store fill`")
    tokens: Literal["none", "exact", "int8", "projected"] = Field("exact", description="how tokens are kept")
    directions: int = Field(128, ge=1, description="principal directions kept of tokens that are projected")
    max_bytes: int = Field(100 * 2**30, ge=1, description="a filling that would make the store larger is refused")
    part_rows: int = Field(256, ge=64, description="tiles a file of the store, and a call of each teacher")
    cache_dir: str | None = Field(None, description="local folder for copies of what is read out of the store")
    cache_bytes: int = Field(50 * 2**30, ge=0, description="bytes of copies kept there, those used last")


class Licence(Section):
    policy: Literal["any", "permissive"] = Field(
        "any", description="permissive refuses teachers that forbid, or do not grant, derivatives, commerce or sharing"
    )


class Standardise(Section):
    summary: Standardiser = "phi_s"
    tokens: Standardiser = "phi_s"
    num_views: int = Field(4096, ge=2, description="views the moments are taken from")


class Heads(Section):
    kind: Literal["separate", "tied"] = Field("separate", description="one head a width, or one sliced head (MRL-E)")
    hidden: int = Field(0, ge=0, description="hidden units of the MLP; 0 = linear")


class Student(Section):
    model: str = "vit_base_patch14_reg4_dinov2"
    model_args: dict[str, Any] = Field(default_factory=dict)
    start: str = Field("random", description="random, timm, a file of weights, or a folder exported earlier")
    widths: tuple[int, ...] = (64, 128, 256, 384, 768)
    pool: Literal["token", "avg"] = "token"
    heads: Heads = Heads()
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 = off")


class Loss(Section):
    summary: Literal["angle", "cosine", "mse", "l1", "smooth_l1_mix", "smooth_l1_half", "spectrum"] = "angle"
    tokens: Literal["mse", "cosine", "l1", "smooth_l1_mix", "smooth_l1_half", "spectrum"] = "mse"
    weights: dict[str, float] = Field(default_factory=dict, description="weight a teacher; 1 where not named")
    kinds: dict[Literal["summary", "tokens"], float] = {"summary": 1.0, "tokens": 1.0}
    widths: dict[int, float] = Field(default_factory=dict, description="weight a width; 1 where not named")
    widths_per_step: int = Field(0, ge=0, description="widths sampled beside the full one each step; 0 = all")
    token_widths_per_step: int = Field(1, ge=0, description="the same for tokens; 0 = all")
    teacher_drop: float = Field(0.0, ge=0, lt=1, description="chance that a teacher is left out of one view's loss")
    relation: float = Field(0.0, ge=0, description="weight of the pairwise-similarity term")


class Optim(Section):
    lr: float = Field(1e-3, gt=0)
    min_lr_share: float = Field(0.01, ge=0, le=1)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the run's views over which lr rises")
    clip: float = Field(1.0, ge=0, description="gradient norm; 0 = off")


class Train(Section):
    seed: int = 0
    device: Device = "auto"
    num_workers: int | tuple[int, int] = Field(1, description="train workers, or (min, max) where Ray may resize")
    resources_per_worker: dict[str, float] = Field(
        default_factory=dict, description="what a worker asks Ray for; a (min, max) on a cluster needs a custom one"
    )
    global_batch: int = Field(1024, ge=1, description="views an optimizer step, whatever the number of workers")
    micro_batch: int = Field(128, ge=1, description="views a forward pass of the student; also the rows of a Ray block")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = Field(False, description="optimizer state in CPU memory (ZeRO stages 1-3)")
    activation_checkpointing: bool = False
    checkpoint_every: int = Field(500, ge=1, description="optimizer steps")
    keep: int = Field(3, ge=1, description="checkpoints kept, beside the best one")
    log_every: int = Field(50, ge=1, description="optimizer steps")
    max_failures: int = Field(3, ge=-1, description="restarts of the worker group before the run fails; -1 = no limit")
    grace_s: float = Field(60, ge=0, description="seconds for a last checkpoint after SIGTERM; a second ends at once")


class Storage(Section):
    root: str = Field("out/runs", description="where runs are written: s3://bucket/prefix or a folder")
    endpoint: str | None = Field(None, description="of an S3 server that is not AWS, e.g. http://127.0.0.1:8333")
    region: str | None = None
    profile: str | None = None
    max_attempts: int = Field(8, ge=1, description="tries a request, with back-off and jitter")
    lease_ttl_s: float = Field(60, gt=0, description="silence after which another driver may take the run over")


class During(Section):
    """Evaluation beside training, of checkpoints, in a process of its own."""

    every: int = Field(0, ge=0, description="optimizer steps from one to the next; 0 = none")
    tiles: Names = Field((), description="labelled tile data sets to choose a checkpoint by, apart from evaluate.tiles")
    splits: Names = ()
    max_tiles: int = Field(500, ge=1, description="of each data set")
    share: float = Field(0.1, gt=0, le=1, description="of the wall time that evaluations may take; more are left out")
    num_gpus: float = Field(0, ge=0, description="of the process that evaluates; 0 = on the CPU")


class Evaluate(Section):
    tiles: Names = Field((), description="URIs of labelled tile data sets")
    splits: Names = ()
    slides: str | None = Field(None, description="CSV of slide labels (slide, label, patient): slides are scored")
    allow_seen: bool = Field(False, description="score patients that distillation saw, and say so")
    folds: int = Field(5, ge=2, description="of cross-validation, where a data set has no split of its own")
    protocols: Names = Field(
        ("few_shot", "retrieval", "clustering"), description="scored beside the linear probe and the neighbours"
    )
    keep: str | None = Field(None, description="where embeddings are kept; none = <storage.root>/_embeddings")
    replicas: int = Field(0, ge=0, description="actors of each encoder on the cluster; 0 = in this process")
    num_gpus: float = Field(0, ge=0, description="of each of these actors")
    during: During = During()
    max_tiles: int = Field(20_000, ge=1)


class Export(Section):
    to: str | None = Field(None, description="folder or URI; none = <run>/export")
    checkpoint: Literal["last", "best"] = Field(
        "last", description="which one is scored and exported; best = by evaluate.during, else by the loss"
    )
    licence: str = "other"


class Metrics(Section):
    mlflow_uri: str | None = None
    wandb_project: str | None = None
    dashboard: bool = Field(False, description="Ray's dashboard, by which Prometheus finds a session of our own")
    cost_per_hour: float = Field(0, ge=0, description="of all machines of the run, in any currency; 0 = not known")
    budget: float = Field(0, ge=0, description="spend at which an alert is raised; 0 = none")


class Run(Section):
    """Everything that decides what a run computes and where it writes."""

    name: str = "run"
    recipe: str = "demo"
    data: Data = Data()
    views: Views = Views()
    plan: Plan = Plan()
    teachers: Teachers = Teachers()
    store: Store = Store()
    licence: Licence = Licence()
    standardise: Standardise = Standardise()
    student: Student = Student()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    storage: Storage = Storage()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    metrics: Metrics = Metrics()

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Every allowed number of train workers."""
        n = self.train.num_workers
        return (n,) if isinstance(n, int) else tuple(range(n[0], n[1] + 1))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of feature that a loss looks at; only for them are there heads."""
        return tuple(kind for kind in ("summary", "tokens") if self.loss.kinds.get(kind, 0.0) > 0)  # type: ignore[call-overload]

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name is a folder in storage.root: letters, digits, '.', '_' and '-'; got {self.name!r}")
        for teacher in self.teachers.models:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", teacher):
                raise ValueError(f"teachers.models: a teacher's name is letters, digits, '_' and '-'; got {teacher!r}")
        widths = self.student.widths
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise ValueError(f"student.widths must ascend without repeats, e.g. (64, 128, 256); got {widths}")
        for name, known in (("loss.weights", self.teachers.models), ("loss.widths", widths)):
            for key in getattr(self.loss, name.split(".")[1]):
                if key not in known:
                    raise ValueError(f"{name} names {key!r}, which is none of {', '.join(map(str, known)) or '(none)'}")
        if not 0 < self.views.scale[0] <= self.views.scale[1] <= 1:
            raise ValueError(f"views.scale must be 0 < low <= high <= 1; got {self.views.scale}")
        if self.student.ema and self.train.zero_stage == 3:
            raise ValueError("student.ema needs whole weights; set train.zero_stage to 0, 1 or 2, or student.ema=0")
        if self.evaluate.during.every and not self.evaluate.during.tiles:
            raise ValueError("evaluate.during.every needs evaluate.during.tiles to choose a checkpoint by")
        if self.metrics.budget and not self.metrics.cost_per_hour:
            raise ValueError("metrics.budget needs metrics.cost_per_hour")
        if not self.kinds:
            raise ValueError("loss.kinds gives neither summary nor tokens a weight; set e.g. loss.kinds.summary=1")
        train, counts = self.train, self.worker_counts
        if not counts or counts[0] < 1:
            raise ValueError(f"train.num_workers must be a count or an ascending (min, max); got {train.num_workers}")
        for n in counts:
            if train.global_batch % (n * train.micro_batch):
                unit = math.lcm(*counts) * train.micro_batch  # so that the advice holds for every allowed count
                nearest = max(unit, round(train.global_batch / unit) * unit)
                raise ValueError(
                    f"train.global_batch={train.global_batch} does not divide into {n} workers x micro_batch "
                    f"{train.micro_batch}; set train.global_batch={nearest} or another micro_batch"
                )
        return self


def run_to_json(run: Run) -> str:
    """The resolved tree as stable JSON: what is saved with checkpoints, manifests and exports."""
    return json.dumps(run.model_dump(mode="json"), indent=1, sort_keys=True)


def overlay(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `tree`, section by section; a value that is not a mapping replaces what was there."""
    out = dict(tree)
    for key, value in over.items():
        old = out.get(key)
        out[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def parse_setting(text: str) -> dict[str, Any]:
    """`loss.weights.uni2_h=0.5` as a nested mapping; the value is read as YAML."""
    path, sep, value = text.partition("=")
    if not sep or not path.strip():
        raise ConfigError(f"--set {text!r} is not of the form section.key=value")
    try:
        tree: Any = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a YAML value; quote it or close its brackets") from None
    for key in reversed(path.strip().split(".")):
        tree = {key: tree}
    return tree


def make_run(tree: Mapping[str, Any]) -> Run:
    """A validated `Run`, or a ConfigError of one sentence that names the key.

    Raises:
        ConfigError: an unknown key (with the nearest right name), a value of the wrong type or range, or sections
            that contradict each other.
    """
    refuse_unknown_keys(Run, tree, "")
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(sentence_of(error)) from None


def sentence_of(error: ValidationError, section: str = "") -> str:
    """The first thing that pydantic found wrong, as `key: what; got value`."""
    first = error.errors()[0]
    # pydantic's own marks for a bad key and for a branch of a union are no part of the path
    parts = [section] * bool(section) + [str(part) for part in first["loc"] if part not in ("[key]", "int")]
    where, message = ".".join(parts), first["msg"].removeprefix("Value error, ")
    if first["type"] == "tuple_type":
        message = "write a list in brackets, e.g. [a, b]"
    got = f"; got {first['input']!r}" if first["loc"] and not isinstance(first["input"], Mapping) else ""
    return f"{where}: {message}{got}" if where else message


def load_run(recipe: str, file: str | Path | None = None, settings: Sequence[str] = ()) -> Run:
    """A recipe, overlaid with a YAML file and then with `section.key=value` settings, in that order.

    `teachers.models.<name>: null` takes a teacher of the recipe out.
    """
    over = {} if file is None else read_file(file)
    for text in settings:
        over = overlay(over, parse_setting(text))
    return resolve(recipe, over)


def read_file(file: str | Path) -> dict[str, Any]:
    """The mapping of sections in a YAML file."""
    try:
        over = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read --config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(over, Mapping):
        raise ConfigError(f"--config {file} must be a mapping of sections, as `pathryoshka config show` prints")
    return dict(over)


def resolve(recipe: str, over: Mapping[str, Any]) -> Run:
    """`over` laid on the recipe that it names itself, else on `recipe`."""
    from pathryoshka.recipes import recipe_by_name

    tree = overlay(recipe_by_name(str(over.get("recipe", recipe))).model_dump(), over)
    teachers = tree["teachers"]
    if isinstance(teachers, Mapping) and isinstance(teachers.get("models"), Mapping):
        kept = {name: teacher for name, teacher in teachers["models"].items() if teacher is not None}
        tree["teachers"] = {**teachers, "models": kept}
    return make_run(tree)


def refuse_unknown_keys(model: type[BaseModel], tree: Mapping[str, Any], where: str) -> None:
    """Walks the tree beside its model; the first key that is no field raises, naming the nearest that is."""
    for key, value in tree.items():
        path = f"{where}{key}"
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(model.model_fields)}"
            raise ConfigError(f"unknown key {path}; {hint}")
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, Mapping | BaseModel):
                raise ConfigError(f"{path} is a section, not a value; set one of {', '.join(kind.model_fields)}")
            if isinstance(value, Mapping):
                refuse_unknown_keys(kind, value, f"{path}.")
        elif isinstance(value, Mapping):
            for inner in get_args(kind):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    for name, entry in value.items():
                        if isinstance(entry, Mapping):
                            refuse_unknown_keys(inner, entry, f"{path}.{name}.")
