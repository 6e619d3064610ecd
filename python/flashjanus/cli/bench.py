"""`flashjanus bench latency | throughput | ops | compare | show`: time the model and other implementations.

`bench serve` is in bench_serve.py.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flashjanus.cli import bench_serve
from flashjanus.cli.bench_options import STDOUT, add_suites
from flashjanus.cli.console import Console
from flashjanus.cli.options import load_model
from flashjanus.cli.provenance import provenance
from flashjanus.cli.reports import check_files, check_plot, publish
from flashjanus.disk.writing import write_text
from flashjanus.errors import InputError

if TYPE_CHECKING:
    from flashjanus import JanusFlow
    from flashjanus.measure.bench.bench_report import Report
    from flashjanus.measure.bench.stages import Stages
    from flashjanus.measure.timing import Engine


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench_serve.add_suite(add_suites(commands, _run, _run_compare, _run_show))


def _run(args: argparse.Namespace, console: Console) -> int:
    console.json = args.json == STDOUT
    if args.random_weights and (args.model != "shapes" or args.vae):
        raise InputError("--random-weights: cannot be combined with --model or --vae, which it replaces")
    _check_peers(args)
    check_files(args)
    stages = _stages(args, console)
    report = _time_ops(args, console, stages) if args.suite == "ops" else _time_stages(args, console, stages)
    from flashjanus.measure.bench.chart import svg

    publish(args, console, report.to_json(), str(report), lambda: svg(report))
    return 0


def _check_peers(args: argparse.Namespace) -> None:
    for peer in getattr(args, "peer", ()):
        for option in ("official_repo", "official_script"):
            if peer.startswith("official") and getattr(args, option) is None:
                raise InputError(f"--peer {peer}: requires --{option.replace('_', '-')} PATH")


def _stages(args: argparse.Namespace, console: Console) -> Stages:
    """The model of the command line as an engine for the benchmark."""
    from flashjanus import JanusFlow
    from flashjanus.measure.bench.models import random_model
    from flashjanus.measure.bench.stages import Stages

    source: dict[str, Any] = {}

    def make(**choices: Any) -> JanusFlow:
        if args.random_weights:
            return random_model(args.random_weights, **choices)
        source.update(source=args.model, vae=args.vae, **choices)
        return JanusFlow.from_pretrained(**source)

    return Stages(load_model(args, console, make), source=source or None)


def _time_stages(args: argparse.Namespace, console: Console, stages: Stages) -> Report:
    from flashjanus.measure.bench import stages as all_stages
    from flashjanus.measure.bench.vae_peer import Diffusers
    from flashjanus.measure.timing import measure

    model = stages.model
    if args.stages is None:
        names = list(all_stages.LATENCY if args.suite == "latency" else all_stages.THROUGHPUT)
        absent = set(all_stages.FROM_DISK if stages.source is None else ())
        if model.runner.vae_config is None:
            console.note(f"{model.name} has no VAE: the stages that decode images are left out")
            absent |= set(all_stages.NEED_VAE)
        names = [name for name in names if name not in absent]
    else:
        names = args.stages.split(",")
        for name in names:
            if name not in all_stages.STAGES or (name in all_stages.FROM_DISK and stages.source is None):
                known, of = ", ".join(all_stages.STAGES), ", ".join(all_stages.FROM_DISK)
                raise InputError(f"--stages: expected some of {known} ({of}: only for a checkpoint), got {name!r}")
    cases = all_stages.cases(names, _swept(args, stages))
    all_stages.check(cases, model, args.repeats)
    engines = [stages, *(_peer(name, args, stages) for name in dict.fromkeys(args.peer))]

    def done(what: str) -> None:
        console.check_interrupt()
        console.status(what)

    records = measure(engines, cases, rounds=args.rounds, repeats=args.repeats, minutes=args.minutes, done=done)
    ran = max((len(record.rounds) for record in records), default=args.rounds)
    if ran < args.rounds:
        console.note(f"{ran} of {args.rounds} rounds ran: another would have ended after --minutes {args.minutes:g}")
    for engine in engines:
        own = [record for record in records if record.engine == engine.name]
        if not own:
            console.note(f"{engine.name} cannot time these stages at these sizes")
        elif isinstance(engine, Diffusers):
            own[0].facts.update(engine.facts)
            console.note(f"{engine.name}: {engine}")
    return _report(args, stages, records, None)


def _time_ops(args: argparse.Namespace, console: Console, stages: Stages) -> Report:
    import torch

    from flashjanus.engine.ops import all_ops
    from flashjanus.measure.bench import stages as all_stages
    from flashjanus.measure.bench.ops import measure_ops
    from flashjanus.measure.ceilings import measure

    wanted = args.ops.split(",") if args.ops else []
    unknown = [name for name in wanted if name not in all_ops()]
    if unknown:
        raise InputError(f"--ops: expected some of {', '.join(all_ops())}, got {unknown[0]!r}")
    sizes = _swept(args, stages)
    several = [name for name, values in sizes.items() if len(values) > 1]
    if several:
        raise InputError(f"bench ops: expected one value of {several[0]}, got {sizes[several[0]]}")
    (case,) = all_stages.cases(["mix"], sizes)
    all_stages.check([case], stages.model, args.repeats)
    console.status("measuring the ceilings")
    weights = (*stages.runner.weights.values(), *stages.runner.vae_weights.values())
    ceilings = measure(stages.device, {torch.float32: None, **dict.fromkeys(weight.dtype for weight in weights)})

    def done(what: str) -> None:
        console.check_interrupt()
        console.status(what)

    records = measure_ops(stages, case, repeats=args.repeats, ceilings=ceilings, wanted=wanted, done=done)
    flops = {str(dtype).removeprefix("torch."): rate for dtype, rate in ceilings.rates.items()}
    return _report(args, stages, records, {"bytes_per_s": ceilings.bandwidth, "flops_per_s": flops})


def _peer(name: str, args: argparse.Namespace, stages: Stages) -> Engine:
    from flashjanus.engine.ops import all_ops
    from flashjanus.measure.bench.models import sibling
    from flashjanus.measure.bench.peers import Official, Transformers
    from flashjanus.measure.bench.stages import Stages
    from flashjanus.measure.bench.vae_peer import Diffusers

    if name == "torch":
        return Stages(sibling(stages.model, dict.fromkeys(all_ops(), "torch")), "torch")
    if name == "transformers":
        return Transformers(stages)
    if name == "diffusers":
        return Diffusers(stages, args.official_python)
    where = args.official_script, args.official_repo, args.official_python
    return Official.of(stages.model, *where, compiled=name == "official-compiled")


def _swept(args: argparse.Namespace, stages: Stages) -> dict[str, list[int]]:
    """The values of each size, by its name."""
    from flashjanus.measure.bench.stages import CHAT_TOKENS, new_tokens

    limit = stages.model.config.language.max_position_embeddings
    fits = max(1, min(CHAT_TOKENS, limit - new_tokens(args.repeats)))
    chat = args.chat_tokens or [fits]
    return {"rows": args.batch, "prompt_tokens": args.prompt_tokens, "chat_tokens": chat, "steps": args.steps}


def _report(args: argparse.Namespace, stages: Stages, records: Any, ceilings: dict[str, Any] | None) -> Report:
    from flashjanus.measure.bench.bench_report import Report

    head = {"kind": args.suite, **provenance(stages.model), "ceilings": ceilings}
    return Report(head, records)


def _run_compare(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.measure.bench.bench_report import Report, difference_table, differences

    before, after = Report.read(args.before), Report.read(args.after)
    found = differences(before, after, args.margin / 100)
    beyond = sum(it.verdict in ("slower", "faster") for it in found)
    console.text(difference_table(found))
    console.text(f"\n{beyond} of {len(found)} differences exceed the noise and {args.margin:g} %")
    for name in ("machine", "versions", "threads", "model"):
        if _settled(before.head.get(name)) != _settled(after.head.get(name)):
            console.note(f"the two reports differ in {name}: the comparison is not of the code alone")
    console.result({"margin": args.margin, "differences": [it.to_json() for it in found]})
    return 0


def _run_show(args: argparse.Namespace, console: Console) -> int:
    check_plot(args.plot)
    if args.goal and not args.markdown:
        raise InputError("--goal: requires --markdown")
    from flashjanus.measure.bench.bench_report import Report
    from flashjanus.measure.bench.chart import svg
    from flashjanus.measure.bench.document import Goal, markdown

    served = bench_serve.read(args.file)
    if served is not None:
        if args.markdown:
            raise InputError("--markdown: expected a report of latency, throughput or ops, got one of serve")
        if args.plot is not None:
            write_text(args.plot, served.svg())
        console.text(str(served))
        return 0
    report = Report.read(args.file)
    try:
        goals = {stage: Goal.parse(goal) for stage, goal in args.goal}
    except ValueError as error:
        raise InputError(f"--goal: {error}") from None
    text = markdown(report, goals) if args.markdown else str(report)
    if args.plot is not None:
        write_text(args.plot, svg(report))
    console.text(text)
    return 0


def _settled(facts: Any) -> Any:
    """The facts without those that change from one minute to the next."""
    return {k: v for k, v in facts.items() if k != "available_bytes"} if isinstance(facts, dict) else facts
