"""The one price table, of machines and of object storage: read, checked, and asked for a machine."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Market = Literal["on_demand", "spot"]
TABLE = Path(__file__).with_name("prices.yaml")


class PriceError(ValueError):
    """No such table, machine or price, in one sentence that says what to give."""


class Machine(BaseModel):
    """One kind of machine; prices in USD an hour for all of it, tflops of one of its accelerators."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    accelerator: str
    gpus: int = Field(ge=1, le=16)
    cpus: int = Field(ge=1)
    tflops: float = Field(gt=0)
    on_demand: float | None = Field(ge=0)
    spot: float | None = Field(ge=0)
    date: datetime.date
    source: str


class Storage(BaseModel):
    """Of objects: USD a GB and month, a thousand requests, a GB that leaves the region."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    gb_month: float = Field(ge=0)
    per_1000_put: float = Field(ge=0)
    per_1000_get: float = Field(ge=0)
    gb_out: float = Field(ge=0)
    date: datetime.date
    source: str


class Prices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    region: str
    machines: dict[str, Machine]
    storage: Storage

    def machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise PriceError(f"{name} is not in the price table; it has {', '.join(self.machines)}")
        return self.machines[name]


def read_prices(path: str | Path | None = None) -> Prices:
    """The table at `path`, by default the one that comes along.

    Raises:
        PriceError: not there, not YAML, or a field too many, too few or out of range, by name.
    """
    try:
        return Prices.model_validate(yaml.safe_load(Path(path or TABLE).read_text()))
    except OSError as error:
        raise PriceError(f"no price table at {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error).splitlines()[0]
        raise PriceError(f"{path} is no price table: {what}") from error


def price_of(name: str, machine: Machine, market: Market) -> float:
    """USD an hour; on demand where there is no spot price would be a guess, so it is refused."""
    value = machine.spot if market == "spot" else machine.on_demand
    if value is None:
        raise PriceError(f"the price table has no {market.replace('_', '-')} price of {name}; give it with --prices")
    return value
