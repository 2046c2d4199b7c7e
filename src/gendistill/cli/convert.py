"""gendistill convert: teacher -> untouched student with its certificate."""

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None) -> None:
    """Convert the teacher and certify the untouched student."""
    run = open_run(recipe, overrides, output)
    certificate = run.convert()
    run.console.print(
        f"{run.folder.student('conversion')}: {certificate['parameters']:,} parameters; loss "
        f"{certificate['student_loss']:.3f} (teacher {certificate['teacher_loss']:.3f}, uniform guess "
        f"{certificate['uniform_loss']:.3f})"
    )
    for start, loss in certificate["losses_by_start"].items():
        run.console.print(f"  start values '{start}': untouched loss {loss:.3f}")
    for layer in certificate["layers"]:
        run.console.print(f"  layer {layer['layer']:>2}: cosine to the teacher's attention {layer['cosine']:.3f}")
