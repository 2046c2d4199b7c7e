"""Commands ended at random moments, and given again until they end: the folder must be that of an undisturbed one."""

import random
import signal
import time

from small_run import SmallRun, complaints, contents, differences

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


def try_all(small: SmallRun, kept) -> None:
    for command, trials in TRIALS.items():
        for number in range(trials):
            name = f"{command} {number}"
            if name not in kept:
                kept.add(name, _try(small, command, random.Random(f"{SEED} {name}")))


def _try(small: SmallRun, name: str, chance: random.Random) -> dict:
    """One trial: one kill, of every third also the restart is killed."""
    command, undisturbed = small.commands[name], small.undisturbed[name]
    wanted, done, wrong = 1 + (chance.random() < 1 / 3), [], []
    small.restore(small.folder_before(command))
    while len(done) < wanted:
        moment, number = chance.uniform(0, undisturbed.seconds), chance.choice(SIGNALS)
        child = small.start(command.arguments)
        time.sleep(moment)
        if child.has_ended():
            child.wait()
            if not done:  # it was faster this time: nothing was tried yet
                small.restore(small.folder_before(command))
                continue
            break  # little was left to do for the restart
        child.send(number)
        code = child.wait()
        done.append({"signal": signal.Signals(number).name, "seconds": round(moment, 3), "code": code})
        if number != signal.SIGKILL and (complaint := complaints(code, child.printed)) is not None:
            wrong.append(f"{signal.Signals(number).name}: {complaint}")
    code, printed = small.run(command.arguments)
    if code:
        wrong.append(f"given again, it ended with {code}: {printed[-500:]}")
    wrong += differences(contents(small.live), contents(undisturbed.folder))
    return {"kills": done, "outcome": "identical" if not wrong else "; ".join(wrong)}
