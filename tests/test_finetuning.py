"""Parts that do not learn, learn later, or learn at rates of their own."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from stubs import trainer

from callbacks import Finetuning
from datamodules import FashionMNIST
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.vae import VAE

SMALL = {"hidden": (8, 8), "latent": 2, "lr": 0.01}


class Watch(Callback):
    """Which parameters moved in each epoch, and the optimisers' rates."""

    def __init__(self):
        self.moved, self.rates = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        now = dict(pl_module.named_parameters())
        self.moved.append({name for name, p in self.before.items() if not torch.equal(p, now[name])})
        self.rates.append([[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers])


@pytest.fixture
def data(data_dir):
    return FashionMNIST(str(data_dir), batch_size=16, val_size=16)


def test_frozen_parts_stay_and_are_freed_when_due(data, tmp_path):
    model, watch = VAE(**SMALL), Watch()
    everything = {name for name, _ in model.named_parameters()}
    decoder = {name for name in everything if name.startswith("decoder")}
    last = {name for name in everything if name.startswith("encoder.net.2")}
    tuning = Finetuning(["encoder", "encoder.*"], unfreeze={"encoder.net.2": 1, "encoder.net*": 2})
    fit = trainer(tmp_path, callbacks=[tuning, watch], max_epochs=3, limit_val_batches=0, logger=False)
    fit.fit(model, datamodule=data)
    assert last and watch.moved == [decoder, decoder | last, everything]


def test_parts_have_rates_of_their_own_and_follow_the_schedule(data, tmp_path):
    model, watch = VAE(**SMALL, lr_decay_start=0.0), Watch()
    tuning = Finetuning(lr_factors={"encoder": 0.1, "encoder.net.2": 0.5})
    fit = trainer(tmp_path, callbacks=[tuning, watch], max_epochs=2, limit_val_batches=0, logger=False)
    fit.fit(model, datamodule=data)
    (first,), (second,) = watch.rates
    # after five of ten steps
    assert first == pytest.approx([0.1 * 0.005, 0.5 * 0.005, 0.005]) and second == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_it_resumes_exactly(data, tmp_path):
    def run(folder, max_epochs, ckpt_path=None):
        torch.manual_seed(1)
        model = VAE(**SMALL, lr_decay_start=0.5)
        tuning = Finetuning(["encoder"], unfreeze={"encoder": 2}, lr_factors={"decoder": 0.3})
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        options = {"limit_val_batches": 0, "logger": False, "enable_checkpointing": True}
        fit = trainer(tmp_path, callbacks=[tuning, keep], max_epochs=max_epochs, **options)
        fit.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return torch.load(tmp_path / folder / "epoch=3.ckpt", weights_only=True)

    whole = run("a", 4)
    resumed = run("b", 4, tmp_path / "a" / "epoch=1.ckpt")
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], atol=0, rtol=0)
    torch.testing.assert_close(resumed["optimizer_states"], whole["optimizer_states"], atol=0, rtol=0)


def test_one_network_of_a_game_can_be_frozen_in_part(data, tmp_path):
    model, watch = DCGAN(width=4, latent=4), Watch()
    fit = trainer(tmp_path, callbacks=[Finetuning(["generator.net.[0-4]"]), watch], max_epochs=1, logger=False)
    fit.fit(model, datamodule=data)
    frozen = {f"generator.net.{i}" for i in range(5)}
    expected = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in frozen}
    norms = [m for m in model.generator.net[:5] if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert watch.moved == [expected] and norms and all((norm.running_mean == 0).all() for norm in norms)


def test_what_cannot_be_is_said_before_the_start(data, tmp_path):
    with pytest.raises(ValueError, match="all parameters of an optimiser are frozen: freeze fewer"):
        everything = Finetuning(["generator"])
        trainer(tmp_path, callbacks=[everything], max_epochs=1, logger=False).fit(
            DCGAN(width=4, latent=4), datamodule=data
        )
    with pytest.raises(
        ValueError, match=r"no sub-module of VAE matches backbone: choose from encoder, decoder and their"
    ):
        trainer(tmp_path, callbacks=[Finetuning(["backbone"])], max_epochs=1).fit(VAE(**SMALL), datamodule=data)
