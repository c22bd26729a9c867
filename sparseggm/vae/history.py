"""The history of a run: one record an epoch, and the files of them that others read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from sparseggm.files import write_atomically, write_json
from sparseggm.gaussian.observed import bits_per_dimension
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.files import checkpoint

BY_LAYER = "kl_by_layer"


@dataclass(frozen=True)
class EpochRecord:
    """Means over the training images of an epoch, in nats an image.

    The ELBO is `reconstruction` − `kl`, whatever the weight of the KL was; with importance samples, their mean. `bound`
    is the objective without warm-up: the ELBO, or the bound of all importance samples. `kl_by_layer` has the KL of each
    of several layers, from the top.
    """

    epoch: int
    elbo: float
    reconstruction: float
    kl: float
    learning_rate: float
    seconds: float
    bound: float
    kl_by_layer: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The record in a checkpoint, whose bound was not named before there were others than the ELBO."""
        return cls(**{"bound": record["elbo"], **record})

    def line(self, config: Config) -> str:
        """The line shown to the user."""
        objective = config.objective_at(self.epoch - 1)
        bound = "" if objective == "elbo" else f"{objective} {self.bound:8.2f}  "
        bits = f"  {bits_per_dimension(self.bound, PIXELS):.3f} bits per dimension" if config.is_grey else ""
        layers = f" ({' + '.join(f'{kl:.2f}' for kl in self.kl_by_layer)})" if self.kl_by_layer else ""
        return (
            f"epoch {self.epoch:>{len(str(config.epochs))}}/{config.epochs}  {bound}ELBO {self.elbo:8.2f}  "
            f"reconstruction {self.reconstruction:8.2f}  KL {self.kl:6.2f}{layers} nats an image{bits}  "
            f"{self.seconds:6.2f} s"
        )


def write_history(out: Path, identity: dict[str, str | int | float], history: Sequence[EpochRecord]) -> None:
    """Write `history.json` and `history.csv` into the directory of a run."""
    rows = [asdict(record) for record in history]
    content = {"run": identity, "versions": checkpoint.versions(), "unit": "nats an image", "epochs": rows}
    write_json(out / "history.json", content)
    table = io.StringIO()
    columns = [one.name for one in fields(EpochRecord)]
    kl_columns = [f"kl_{layer}" for layer in range(len(history[0].kl_by_layer), 0, -1)] if history else []
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*(name for name in columns if name != BY_LAYER), *kl_columns])
    for row in rows:
        writer.writerow([*(row[name] for name in columns if name != BY_LAYER), *row[BY_LAYER]])
    write_atomically(out / "history.csv", lambda file: file.write(table.getvalue().encode()))
