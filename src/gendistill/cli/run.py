"""gendistill run: the whole path, from a checkpoint to a table."""

from gendistill.cli.options import Output, Overrides, RecipeFile, open_run


def command(recipe: RecipeFile, overrides: Overrides = None, output: Output = None) -> None:
    """Convert, distil in stages, evaluate after each, and write a summary; resumes where it stopped."""
    run = open_run(recipe, overrides, output, trains=None, evaluates=True)

    from gendistill.run.convert import convert_teacher
    from gendistill.run.distill import distil_stage
    from gendistill.run.evaluate import evaluate_student, evaluate_teacher
    from gendistill.run.reply_kl import measure_replies

    run.console.print(f"{run.recipe.name}: {run.recipe.teacher} on {run.compute.device}, {run.compute.dtype_name}")
    convert_teacher(run)
    teacher = evaluate_teacher(run)
    students = {}
    # The summary needs every evaluation, so one that was done before is read again here, not skipped.
    evaluated = run.recipe.evaluation.stages or run.folder.stages
    for stage in run.folder.stages:
        if stage != "conversion":  # done above
            distil_stage(run, stage)
        measure_replies(run, stage)
        if stage not in evaluated:
            continue
        scores = evaluate_student(run, stage)
        if scores is None:  # only the first process has scores, and prints
            continue
        students[run.folder.label(stage)] = scores
        run.console.print(f"{stage}: student {_accuracy(scores)} (teacher {_accuracy(teacher)})")
    if students:
        print_results(run, teacher, students)


def print_results(run, teacher, students: dict) -> None:
    """Tables of all stages and of the last one; writes the summary."""
    from gendistill.analysis.scores import paired_table
    from gendistill.analysis.tables import PAIRED_HEADER, paired_cells, stages_cells, to_rich
    from gendistill.run.summarise import summarise

    last = list(students)[-1]
    rows = paired_table(teacher, {last: students[last]})[last]
    run.console.print(to_rich("stage by stage: ranking/generation, percent", *stages_cells(teacher, students)))
    run.console.print(to_rich("teacher and student, percent", PAIRED_HEADER, paired_cells(rows)))
    run.console.print(f"summary: {summarise(run.folder, teacher, students)}")


def _accuracy(scores) -> str:
    ranking = "" if scores.ranking is None else f", {scores.ranking:.1%} by ranking"  # None: nothing was ranked
    return f"{scores.generation:.1%} by generation{ranking}"
