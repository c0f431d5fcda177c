"""The W&B dashboard of this project, described as code: a workspace with curves, samples and distances of all runs.

    pip install wandb-workspaces; python benchmarks/dashboard.py ENTITY [--project lit-generative] [--dry_run]

``--dry_run`` prints what would be made, without an account or a network.
"""

import argparse

SECTIONS = {
    "Likelihood": ["val/elbo", "val/bpd", "val/kl", "val/reconstruction", "val/nll"],
    "Training": ["train/loss", "train/loss_generator", "train/loss_discriminator", "train/images_per_second"],
    "Quality": ["val/fid_lenet_mnist", "val/fid_lenet_fashion_mnist", "val/fid_inception", "val/l1", "val/psnr"],
}
PICTURES = ["samples", "reconstructions", "interpolations", "translations", "traversals"]


def workspace(entity, project):
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=[wr.LinePlot(x="trainer/global_step", y=[y]) for y in metrics], is_open=True)
        for name, metrics in SECTIONS.items()
    ]
    pictures = ws.Section(name="Pictures", panels=[wr.MediaBrowser(media_keys=[key]) for key in PICTURES])
    columns = ["row/precision", "row/recall", "row/bits/dim", "row/training, min"]
    table = ws.Section(
        name="Tests", panels=[wr.ParallelCoordinatesPlot([wr.ParallelCoordinatesPlotColumn(c) for c in columns])]
    )
    return ws.Workspace(entity=entity, project=project, name="lit-generative", sections=[pictures, *sections, table])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", nargs="?", help="W&B user or team")
    parser.add_argument("--project", default="lit-generative")
    parser.add_argument("--dry_run", action="store_true")
    args = parser.parse_args()
    if args.entity is None:
        print("no dashboard is made: name an entity")
        return
    try:
        made = workspace(args.entity, args.project)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install wandb-workspaces") from error
    if args.dry_run:
        for section in made.sections:
            print(f"{section.name}: {len(section.panels)} panels")
        return
    print(made.save().url)


if __name__ == "__main__":
    main()
