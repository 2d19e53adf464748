"""``seal export``: a run's stage as one of SEAL's files, its numbers for a tracker, or what was learnt."""

from __future__ import annotations

import json
from argparse import Namespace

from seal.cli.commands import must_be_new, push
from seal.records import SealError


def export(args: Namespace) -> int:
    """``seal export``: a stage of a run as one of SEAL's files, its numbers for a tracker, or whole
    weights."""
    if args.kind == "gguf" and not args.merge:
        from seal.teach.whole import adapter_as_gguf

        if not args.out or args.dtype or args.push:
            raise SealError(
                "--kind gguf writes an adapter as one file: say --out NAME.gguf, and no --dtype or --push"
            )
        must_be_new(args.out)
        adapter_as_gguf(args.source, args.out, args.model, args.stage)
        print(args.out)
        return 0
    if args.merge:
        from seal.teach.whole import merge

        if args.out or args.kind:
            raise SealError(
                "--merge FOLDER writes whole weights, and --out and --kind something else: take one"
            )
        merge(args.source, args.merge, args.model, args.dtype, args.stage)
        print(args.merge)
        if args.push:
            push(args.merge, args.push)
        return 0
    if args.model or args.dtype or args.push:
        raise SealError("--model, --dtype and --push are of --merge")
    if not args.out:
        raise SealError("say where to: --out FILE, or --merge FOLDER for whole weights")
    must_be_new(args.out)
    if args.kind == "tensorboard":
        from seal.report.export import metrics_of, tensorboard
        from seal.store import read_config

        if args.stage:
            raise SealError("--stage is of --kind results and dataset")
        tensorboard(list(metrics_of(args.source)), read_config(args.source), args.out)
    else:
        from seal.loop.released import export_dataset, export_results
        from seal.store import write_whole

        form = export_dataset if args.kind == "dataset" else export_results
        data = form(args.source, args.stage or "seal/round-1")
        write_whole(args.out, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(args.out)
    return 0
