"""Model verbs of the command line: import, export, gate, show."""

from typing import Annotated

import typer

from model.families import names
from pipeline import console, words
from pipeline.exits import leave_with

app = typer.Typer(help="Model files: import, export, prove, show.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Out = Annotated[str, typer.Option("--out", help="Model file to write (.onnx).")]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32; fp16, made for CUDA; int8, which runs on CPUs alone.")
]
Target = Annotated[
    str, typer.Option("--target", help="any: CPU and CUDA (int8: CPU); cpu: v1's GRU as ONNX's own, CUDA refused.")
]
Dims = Annotated[
    int, typer.Option("--dims", help="v2: store the first 16, 32 or 64 values, or what its args name; 0: the family's.")
]


@app.command("import")
def model_import(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Published checkpoint (.pt, .safetensors).")],
    family: Annotated[str, typer.Option("--family", help=f"{', '.join(names())}.")],
    out: Out,
    precision: Precision = "fp32",
    target: Target = "any",
    dims: Dims = 0,
    heads: Annotated[int, typer.Option("--heads", help="Attention heads, where the checkpoint does not say.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into a model file.

    Example: tessera-beam model import v1_1.pt --family v1.1-mpc --out m.onnx
    """
    from pipeline.model import Shape, import_model

    shape = Shape(precision, target, dims or None)
    console.show(import_model(checkpoint, family, out, shape, heads or None), as_json, lambda r: str(r["text"]))


@app.command("export")
def model_export(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint of our own training.")],
    out: Out,
    precision: Precision = "fp32",
    target: Target = "any",
    dims: Dims = 0,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint that was trained here into a model file.

    Example: tessera-beam model export run/last.pt --out m.onnx
    """
    from pipeline.model import Shape, export_model

    shape = Shape(precision, target, dims or None)
    console.show(export_model(checkpoint, out, shape), as_json, lambda r: str(r["text"]))


@app.command("gate")
def model_gate(
    models: Annotated[list[str], typer.Argument(metavar="M.onnx..", help="Model files.")],
    against: Annotated[str, typer.Option("--against", help="Checkpoint that it must equal (needs torch).")] = "",
    full: Annotated[bool, typer.Option("--full", help="The long matrix of sizes too.")] = False,
    report_html: Annotated[str, typer.Option("--report", help="HTML page to write; a folder for several files.")] = "",
    as_json: Json = False,
) -> None:
    """Prove model files: exit code 0, or 4 when a check of any of them fails.

    Example: tessera-beam model gate m.onnx --against v2.pt --report gate.html
    """
    from pipeline.model import gate_all

    result, ok = gate_all(models, against or None, full, report_html or None, console.say)
    console.show(result, as_json, words.gated)
    leave_with(console.OK if ok else console.BAD_INPUT if result.get("refused") else console.CHECK_FAILED)


@app.command("show")
def model_show(
    model: Annotated[str, typer.Argument(metavar="M.onnx", help="Model file, or a profile's name: v1.1-mpc+nearest.")],
    as_json: Json = False,
) -> None:
    """Say what a model file, or a published profile, is, as a person reads it.

    Example: tessera-beam model show m.onnx
    """
    from pipeline.model import show_model

    console.show(show_model(model), as_json, lambda r: str(r["text"]))
