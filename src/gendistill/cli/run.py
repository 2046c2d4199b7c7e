"""gendistill run: the whole path, from a checkpoint to a table."""

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None) -> None:
    """Convert, distil in stages, evaluate after each, and write a summary; resumes where it stopped."""
    run = open_run(recipe, overrides, output, trains=None)

    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, stages_cells, to_rich
    from gendistill.run.summarise import summarise

    run.console.print(
        f"{run.recipe.name}: {run.recipe.teacher} on {run.device}, {str(run.dtype).removeprefix('torch.')}"
    )
    run.check_tasks()
    run.convert()
    teacher = run.evaluate_teacher()
    students = {}
    for point in run.folder.points:
        if point != "conversion":
            run.distil(point)
        if point not in (run.recipe.evaluation.points or run.folder.points):
            continue
        scores = run.evaluate_student(point)
        if scores is None:  # the first process does the talking
            continue
        students[run.folder.label(point)] = scores
        run.console.print(f"{point}: student {_said(scores)} (teacher {_said(teacher)})")
    if not students:
        return
    last = list(students)[-1]
    rows = paired_table(teacher, {last: students[last]})[last]
    run.console.print(to_rich("stage by stage: ranking/generation, percent", *stages_cells(teacher, students)))
    run.console.print(to_rich("teacher and student, percent", PAIRED_HEADER, paired_cells(rows)))
    run.console.print(f"summary: {summarise(run.folder, teacher, students)}")


def _said(scores) -> str:
    ranking = "" if scores.ranking is None else f", {scores.ranking:.1%} by ranking"
    return f"{scores.generation:.1%} by generation{ranking}"
