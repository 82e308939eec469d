"""`raft-peft push`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from raft_peft.cli.options import parse, parser_of

SUMMARY = "upload a saved model to the Hub"
HELP = """\
Upload a saved or merged model to the Hub with its card, into a private repository.

  raft-peft push stars-raft me/stars --dry-run
  raft-peft push stars-raft me/stars

Only the files that open the model are uploaded: weights, tokenizer, settings, calibration and card.
"""


def parser() -> ArgumentParser:
    parser = parser_of("push", "FOLDER NAME", HELP)
    parser.add_argument("folder", help="Folder of a saved or merged model.")
    parser.add_argument("name", help="Name of the repository, such as me/stars.")
    parser.add_argument("--public", action="store_true", help="Make the repository public.")
    parser.add_argument("--dry-run", action="store_true", help="List the files, and upload nothing.")
    parser.add_argument(
        "--base-model",
        metavar="NAME",
        help="Hub name of the adapter's base model, if the base was a local folder in training.",
    )
    return parser


def run(parser: ArgumentParser, words: Sequence[str]) -> None:
    options = parse(parser, words)

    from raft_peft.prediction.sharing import push_to_hub

    pushed = push_to_hub(
        options.folder,
        options.name,
        base_model=options.base_model,
        private=not options.public,
        dry_run=options.dry_run,
    )
    for path, size in pushed.sizes.items():
        print(f"{size:>15,}  {path}")
    total = sum(pushed.sizes.values())
    print(f"{total:>15,}  bytes in {len(pushed.sizes)} files")
    readers = "private" if pushed.private else "public"
    if options.dry_run:
        print(f"They would be uploaded to {pushed.url} ({readers}). Nothing was uploaded.")
    else:
        print(f"The model is at {pushed.url}.")
