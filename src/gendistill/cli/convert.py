"""gendistill convert: teacher -> untrained student with its conversion report."""

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None) -> None:
    """Convert the teacher and certify the untrained student."""
    run = open_run(recipe, overrides, output)
    conversion_report = run.convert()
    run.console.print(
        f"{run.folder.student('conversion')}: {conversion_report['parameters']:,} parameters; loss "
        f"{conversion_report['student_loss']:.3f} (teacher {conversion_report['teacher_loss']:.3f}, uniform guess "
        f"{conversion_report['uniform_loss']:.3f})"
    )
    for start, loss in conversion_report["losses_by_initialisation"].items():
        run.console.print(f"  initialisation '{start}': untrained loss {loss:.3f}")
    for layer in conversion_report["layers"]:
        run.console.print(f"  layer {layer['layer']:>2}: cosine to the teacher's attention {layer['cosine']:.3f}")
