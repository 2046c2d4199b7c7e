"""gendistill convert: teacher -> untrained student with its conversion report."""

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run

EXAMPLES = ("gendistill convert recipes/demo.yaml",)


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None) -> None:
    """Convert the teacher and measure the untrained student."""
    run = open_run(recipe, overrides, output, evaluates=True)

    from gendistill.run.convert import convert_teacher

    report = convert_teacher(run)
    run.console.print(
        f"{run.folder.student('conversion')}: {report['parameters']:,} parameters; loss "
        f"{report['student_loss']:.3f} (teacher {report['teacher_loss']:.3f}, uniform guess "
        f"{report['uniform_loss']:.3f})"
    )
    # All that were tried; the recipe's own is the last.
    for start, loss in report["losses_by_initialisation"].items():
        run.console.print(f"  initialisation '{start}': untrained loss {loss:.3f}")
    # Replaced layers only; what keeps softmax attention is the teacher's own.
    for layer in report["layers"]:
        run.console.print(f"  layer {layer['layer']:>2}: cosine to the teacher's attention {layer['cosine']:.3f}")
