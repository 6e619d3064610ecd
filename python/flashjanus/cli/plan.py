"""`flashjanus plan`: print the frozen plans that the executor runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from flashjanus.cli.console import Console
from flashjanus.cli.options import add_model_options, add_output_options, load_model, model_facts

PROGRAMS = (
    "encode_images",
    "prefill",
    "decode_step",
    "flow_prepare",
    "encode_latents",
    "decode_velocity",
    "flow_step",
    "flow_step_conditional",
    "flow_step_storing",
    "flow_step_storing_conditional",
    "flow_step_recalling",
    "flow_step_recalling_conditional",
    "read_embeds",
    "read_embeds_masked",
    "decode_latents",
)
"""The programs that execution.runner builds. It is not imported here because it needs torch."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="print the plan of a program",
        description="Print each node of a program's plan: op, implementation, buffer, FLOPs and bytes.",
    )
    parser.add_argument(
        "--program", choices=(*PROGRAMS, "all"), default="flow_step", help="program to print (default: flow_step)"
    )
    parser.add_argument(
        "--rows", type=int, default=1, metavar="R", help="number of images or sequences in the batch (default: 1)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=64, metavar="P", help="prompt length in tokens (default: 64)"
    )
    parser.add_argument("--steps", type=int, default=30, metavar="K", help="Euler steps (default: 30)")
    parser.add_argument("--why", action="store_true", help="also say why each implementation was chosen")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    model = load_model(args, console)
    programs = PROGRAMS if args.program == "all" else (args.program,)
    plans = {
        program: model.plan(program, rows=args.rows, prompt_tokens=args.prompt_tokens, steps=args.steps)
        for program in programs
    }
    texts = [f"{plan}\n\n{plan.why()}" if args.why else str(plan) for plan in plans.values()]
    console.text("\n\n".join([*texts, f"buckets: {model.buckets}"]))
    buckets = asdict(model.buckets)
    console.result(
        {
            **model_facts(model),
            "buckets": buckets,
            "plans": {program: plan.to_json() for program, plan in plans.items()},
        }
    )
    return 0
