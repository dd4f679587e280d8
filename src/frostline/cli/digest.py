"""`frostline digest FILE`: one line that identifies the values of a checkpoint, bit for bit."""

from __future__ import annotations

import argparse
import json

HELP = "one line that identifies the values of a checkpoint, bit for bit"

_EXAMPLES = """\
examples:
  frostline digest model/
  frostline digest checkpoint.pt --tensors
  frostline digest base.safetensors+step-42.safetensors

A FILE is what `frostline diff` takes. The digest is that of fl.digest(model): of names, dtypes, shapes and bytes; tied
tensors count once. It finds every accident; it is not cryptographic, so it proves nothing against a forger."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("files", metavar="FILE", nargs="+", help="a checkpoint: a file, a folder, or BASE+FILE")
    parser.add_argument("--tensors", action="store_true", help="also a line for each tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON object: FILE -> digest, tensors")


def run(args: argparse.Namespace) -> int:
    """Print digests; return 0."""
    from frostline.changes.overlay import read_state
    from frostline.changes.processes import Processes
    from frostline.changes.progress import Progress
    from frostline.changes.state_hash import state_digest, state_sums, tensor_digests

    found: dict[str, dict[str, object]] = {}
    for file in args.files:
        with Progress("read") as progress:
            state = read_state(file)
            total, done = sum(tensor.nbytes for tensor in state.values()), [0]

            def count(nbytes: int, total: int = total, done: list[int] = done) -> None:
                done[0] += nbytes
                progress(done[0], total)

            sums = state_sums(state, Processes(), count)
        digest, tensors = state_digest(state, sums), tensor_digests(state, sums) if args.tensors else {}
        found[file] = {"digest": digest} | ({"tensors": tensors} if args.tensors else {})
        if not args.json:
            print(f"{digest}  {file}")
            for name, of_tensor in tensors.items():
                print(f"{of_tensor}    {name}")
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0
