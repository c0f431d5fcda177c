"""Translations of several checkpoints beside two ends: the mean of all training targets, and the real images.

    python benchmarks/translations.py CHECKPOINT... --data_dir FOLDER --segmenter WEIGHTS.safetensors [--output DIR]

All see the test pairs of ``FOLDER``, in the layout ``pairs`` of `scenes/streets.py` or as Cityscapes has them. Labels
of photos are those that `extractors/streets.py` finds, the Fréchet distance is over its features. Prints one table,
writes it as ``translations.md``.
"""

import argparse
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from benchmarks.extractors.streets import Features, Segmenter
from callbacks import TranslationFID, TranslationGrid, TranslationScores
from datamodules import Cityscapes
from lit_generative.checkpoints.load import data_config, find_class, load_model, read_checkpoint
from lit_generative.images import from_uint8

COLUMNS = {"l1": ".4f", "psnr": ".2f", "ssim": ".3f", "fid_translations_streets": ".2f"}
COLUMNS |= {"pixel_accuracy": ".3f", "class_accuracy": ".3f", "class_iou": ".3f"}
# of folders whose side a has the photos, as scenes/streets.py draws them
DIRECTIONS = {"a_to_b": "photo_to_labels", "b_to_a": "labels_to_photo"}


class MeanImage(LightningModule):
    """The same picture whatever the source."""

    def __init__(self, picture):
        super().__init__()
        self.image_shape, self.picture = tuple(picture.shape), picture

    def translate(self, c):
        return self.picture.expand(len(c), *self.picture.shape)

    def test_step(self, batch, batch_idx):
        """What is asked is asked by callbacks."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--data_dir", help="folder of the test pairs")
    parser.add_argument("--segmenter", help="weights that benchmarks/extractors/streets.py wrote")
    parser.add_argument("--output", type=Path, default=Path("runs/translations"), help="folder of everything written")
    args = parser.parse_args()
    if not (args.checkpoints and args.data_dir and args.segmenter):
        print("nothing to test: give checkpoints, --data_dir and --segmenter")
        return
    config = data_config(read_checkpoint(args.checkpoints[0]))
    cls, given = find_class(config["class_path"], LightningDataModule), config["init_args"]
    learned = cls(**given | {"load_size": given["image_size"]})
    direction = DIRECTIONS.get(given["direction"], given["direction"])
    tested = Cityscapes(args.data_dir, image_size=given["image_size"], direction=direction, batch_size=20, val_size=1)
    mean = from_uint8(learned.stored("train")[0]).mean(0)
    models = {"mean image": MeanImage(mean)}
    models |= {str(path.parents[1].parent.name): load_model(path) for path in args.checkpoints}
    lines, metrics = [["", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]], {}
    for name, model in models.items():
        scores = TranslationScores(Segmenter(args.segmenter) if tested.label_side == "source" else None)
        callbacks = [scores, TranslationFID(Features(args.segmenter)), TranslationGrid()]
        options = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
        trainer = Trainer(default_root_dir=args.output / name, callbacks=callbacks, **options)
        (found,) = trainer.test(model, datamodule=tested, verbose=False)
        metrics = {key.removeprefix("test/"): value for key, value in found.items()}
        lines.append([name, *(f"{metrics[key]:{form}}" if key in metrics else "-" for key, form in COLUMNS.items())])
    if "real_pixel_accuracy" in metrics:
        real = (f"{metrics[f'real_{key}']:{COLUMNS[key]}}" for key in ("pixel_accuracy", "class_accuracy", "class_iou"))
        lines.append(["real photos", "0", "∞", "1", "0", *real])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "translations.md").write_text(f"{table}\n")
    print(f"{scores.describe_test()}\n\n{table}\n\n{args.output / 'translations.md'}")


if __name__ == "__main__":
    main()
