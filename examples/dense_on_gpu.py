"""All correlations of fifty latent variables, trained by dense algebra on a GPU: `python -m examples.dense_on_gpu`.

Where all latent variables are joined, L is dense, and batches of small dense matrices are what a GPU is good at. This
trains the model of `sparseggm train --posterior full --latent 50 --objective iwae` with torch alone, a step as one CUDA
graph, and leaves a run of sparseggm in --out: its weights, averages, moments and history. From there on it is like any
other: `sparseggm evaluate`, `sparseggm figures`, or `sparseggm train --config OUT/config.json --resume` on a CPU.

A test holds the bound and its gradients against those of the library. Without a GPU the same steps run on the CPU, and
take far longer.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseggm.positivity.families import bounded
from sparseggm.vae.config import Config
from sparseggm.vae.data import load_images
from sparseggm.vae.errors import MISTAKES, CheckpointError, ConfigError, DivergedError, Interrupted
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.model import VAE
from sparseggm.vae.objective import importance_weighted_loss
from sparseggm.vae.randomness import generator
from sparseggm.vae.train import Training, require_startable

TF32 = "tf32"
"""Products of matrices with the ten-bit fractions of a GPU's matrix units; sums in float32."""

EPOCHS_BETWEEN_SAVES = 100


class DenseVAE(nn.Module):
    """The networks of a `VAE` whose posterior is full, copied to a device, and its Gaussian as a dense factor there.

    Args:
        vae: float32, its prior N(0, I), its L eliminated in the order of the latent variables.
        device: where all of it computes.
    """

    places: Tensor
    diagonal: Tensor

    def __init__(self, vae: VAE, device: torch.device) -> None:
        super().__init__()
        pattern, n = vae.head.topology.factor_pattern, vae.head.topology.n
        self.encoder, self.decoder, self.last = copy.deepcopy(nn.ModuleList([vae.encoder, vae.decoder, vae.head.layer]))
        self.register_buffer("places", torch.tensor(pattern.rows * n + pattern.cols, dtype=torch.int64), False)
        self.register_buffer("diagonal", torch.eye(n, dtype=torch.bool), False)
        self.likelihood, self.n = vae.likelihood, n
        self.to(device)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """loc (B, n) and L (B, n, n) for images (B, 784)."""
        outputs: Tensor = self.last(self.encoder(x))
        loc, inputs = outputs[:, : self.n], outputs[:, self.n :]
        lower = inputs.new_zeros(len(x), self.n**2).index_copy(-1, self.places, inputs).view(-1, self.n, self.n)
        return loc, torch.where(self.diagonal, bounded(lower).exp(), lower)

    def forward(self, x: Tensor, noise: Tensor, kl_weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss and terms of the importance-weighted bound, as `importance_weighted_terms`, of noise (K, B, n)."""
        loc, factor = self.posterior(x)
        deviations = torch.linalg.solve_triangular(factor.mT, noise.permute(1, 2, 0), upper=True)  # (B, n, K)
        z = loc + deviations.permute(2, 0, 1)
        # q stands still: its gradient goes through the sample alone.
        whitened = torch.einsum("bji,kbj->kbi", factor.detach(), z - loc.detach())
        log_determinant = factor.detach().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_ratio = log_determinant + 0.5 * (z.square() - whitened.square()).sum(-1)
        log_likelihood = self.likelihood.log_prob(self.decoder(z), x, torch.default_generator)
        return importance_weighted_loss(log_likelihood, log_ratio, [z], kl_weight=kl_weight)


class Trainer:
    """Training on a device, and the library's run that it is for.

    Args:
        training: a run that was just started, or restored.
        device: a GPU, or the CPU.
    """

    def __init__(self, training: Training, device: torch.device) -> None:
        assert isinstance(training.vae, VAE)
        assert training.average is not None
        if training.step:
            raise CheckpointError(f"{training.checkpoint}: within an epoch. Finish it by sparseggm train --resume.")
        self.training, self.average, self.device = training, training.average, device
        self.model = DenseVAE(training.vae, device)
        self.weights = list(self.model.parameters())
        self.averages = [average.detach().to(device, copy=True) for average in self.average.module.parameters()]
        self.rate, self.done = torch.zeros(2, device=device).unbind()
        self.sums = torch.zeros(len(training.config.terms), device=device)
        self.done.copy_(self.average.n_averaged)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.weights, self.rate, fused=True, capturable=on_gpu)
        self.moments = [self._moments_of(own) for own in training.vae.parameters()]
        self.optimizer.state.update(zip(self.weights, self.moments, strict=True))
        self.images = training.images.to(device)
        self.batches = len(self.images) // training.config.batch  # all of one size: the last images of an order wait
        self.batch = torch.arange(training.config.batch, device=device)
        self.step = self._captured() if on_gpu else self._step

    def train(self, stop: StopRequest) -> None:
        """All epochs that are left. Randomness is a function of seed and epoch, so that a resumed run is the same.

        Raises:
            Interrupted: a signal came; the state after the epoch is saved.
            DivergedError: a number is no longer finite; the last checkpoint is kept.
        """
        training, config = self.training, self.training.config
        while not training.finished:
            began = time.perf_counter()
            torch.manual_seed(generator(config.seed, "dense", training.epoch).initial_seed())
            self.rate.fill_(config.learning_rate_at(training.epoch))
            self.sums.zero_()
            for batch in self._batches():
                self.batch.copy_(batch)
                self.step()
            self._record(began)
            print(training.history[-1].line(config), flush=True)
            if training.epoch % EPOCHS_BETWEEN_SAVES == 0 or training.finished or stop.signal:
                training.save()
            if stop.signal and not training.finished:
                raise Interrupted(f"stopped after epoch {training.epoch}; go on with --resume.", signal=stop.signal)

    def _moments_of(self, own: nn.Parameter) -> dict[str, Tensor]:
        """Those of Adam for a weight of the run, on the device; before the first step none."""
        state = self.training.optimizer.state.get(own, {})
        first = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(own), "exp_avg_sq": torch.zeros_like(own)}
        return {name: state.get(name, zero).detach().to(self.device, copy=True) for name, zero in first.items()}

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), device=self.device)
        return iter(order[: self.batches * len(self.batch)].view(self.batches, -1))

    def _step(self) -> None:
        """One step of the whole recipe, of what is on the device: no number comes from Python, or goes there."""
        config = self.training.config
        warm_up = config.warm_up * self.batches
        x = self.model.likelihood.observe(self.images[self.batch], None)  # type: ignore[arg-type]  # its own generator
        noise = torch.randn(config.importance_samples, len(x), config.latents, device=self.device)
        kl_weight = (self.done / warm_up).clamp(max=1.0) if warm_up else torch.ones_like(self.done)
        loss, terms = self.model(x, noise, kl_weight)
        self.optimizer.zero_grad()
        loss.mean().backward()
        self.optimizer.step()
        self.sums.add_(torch.stack(terms).mean(1))
        decay = ((1.0 + self.done) / (10.0 + self.done)).clamp(max=config.averaging)
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight.detach(), 1.0 - decay)
        self.done.add_(1.0)

    def _captured(self) -> Callable[[], None]:
        """The step as one graph of the GPU, which a call replays; before it, as it was."""
        moved = [*self.weights, *self.averages, self.done, *(m for moments in self.moments for m in moments.values())]
        start = [each.detach().clone() for each in moved]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate their memory in the first calls
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        with torch.no_grad():
            for each, value in zip(moved, start, strict=True):
                each.copy_(value)
        return graph.replay

    def _record(self, began: float) -> None:
        """Means of the epoch, weights, averages and moments to the run."""
        training = self.training
        means = self.sums.cpu() / self.batches  # waits for the device
        if not all(bool(numbers.isfinite().all()) for numbers in (means, *self.weights, *self.averages)):
            raise DivergedError(
                f"loss or weights stopped being finite in epoch {training.epoch + 1}. The last good checkpoint, "
                f"{training.checkpoint}, is kept. Try a larger --batch, with another --out."
            )
        training.sums.zero_()
        training.sums[0] = means * len(self.images)
        with torch.no_grad():
            for own, weight, moments in zip(training.vae.parameters(), self.weights, self.moments, strict=True):
                own.copy_(weight)
                training.optimizer.state[own] = {name: moment.to("cpu", copy=True) for name, moment in moments.items()}
            for own, average in zip(self.average.module.parameters(), self.averages, strict=True):
                own.copy_(average)
            self.average.n_averaged.copy_(self.done)
        training.close_epoch(time.perf_counter() - began)


def main() -> None:
    parser = command_line()
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here.")
    try:
        run(options)
    except (*MISTAKES, Interrupted, OSError) as error:
        parser.error(str(error))


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/dense"))
    parser.add_argument("--epochs", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=50, help="importance samples in a step")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--warm_up", type=int, default=10, help="epochs in which the weight of the KL rises")
    parser.add_argument("--split", default="60k", help="60k: to train on all, as the published runs did; or 50k")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    return parser


def run(options: argparse.Namespace) -> None:
    """Train as the options say."""
    config = Config(
        posterior="full", latent=50, objective="iwae", averaging=0.999, warm_up=options.warm_up,
        importance_samples=options.samples, epochs=options.epochs, batch=options.batch, split=options.split,
        seed=options.seed,
    )  # fmt: skip
    torch.backends.cuda.matmul.fp32_precision = TF32
    images = load_images(None, config.split)
    if config.batch > len(images.train):
        raise ConfigError(f"batch must be within the training images, {len(images.train):,}.")
    require_startable(config, images, options.out, resume=options.resume)
    with only_process(options.out), StopRequest() as stop:
        training = Training(config, images, options.out, resume=options.resume)
        Trainer(training, torch.device(options.device)).train(stop)


if __name__ == "__main__":
    main()
