"""Commands ended at random moments, and given again until they end: the folder must be that of an undisturbed one."""

import random
import signal
import time

from bench_of_runs import Bench, complaints, contents, differences

TRIALS = {  # of each command
    "run from nothing": 8,
    "distill": 10,
    "convert": 9,
    "evaluate": 8,
    "synthesize": 8,
    "place": 7,
    "run": 4,
    "show-batch": 2,
    "evaluate --model": 2,
    "plan": 1,
    "bench": 1,
}
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]
SEED = 20261128


def try_all(bench: Bench, kept) -> None:
    for command, trials in TRIALS.items():
        for number in range(trials):
            name = f"{command} {number}"
            if name not in kept:
                kept.add(name, _try(bench, command, random.Random(f"{SEED} {name}")))


def _try(bench: Bench, name: str, chance: random.Random) -> dict:
    """One trial: one kill, of every third also the restart is killed."""
    command, undisturbed = bench.commands[name], bench.undisturbed[name]
    wanted, done, wrong = 1 + (chance.random() < 1 / 3), [], []
    bench.restore(command.before)
    while len(done) < wanted:
        moment, number = chance.uniform(0, undisturbed.seconds), chance.choice(SIGNALS)
        child = bench.start(command.arguments)
        time.sleep(moment)
        if child.has_ended():
            child.wait()
            if not done:  # it was faster this time: nothing was tried yet
                bench.restore(command.before)
                continue
            break  # little was left to do for the restart
        child.send(number)
        code = child.wait()
        done.append({"signal": signal.Signals(number).name, "seconds": round(moment, 3), "code": code})
        if number != signal.SIGKILL and (complaint := complaints(code, child.printed)) is not None:
            wrong.append(f"{signal.Signals(number).name}: {complaint}")
    code, printed = bench.run(command.arguments)
    if code:
        wrong.append(f"given again, it ended with {code}: {printed[-500:]}")
    wrong += differences(contents(bench.live), contents(undisturbed.folder))
    return {"kills": done, "outcome": "identical" if not wrong else "; ".join(wrong)}
