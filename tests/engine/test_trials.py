"""What an idle engine tries, and how much of its time that takes from those who arrive."""

from edge.engine.steps import StepModel
from edge.engine.threads import ThreadChoice
from edge.engine.trials import Trial, Trials
from tests.engine.test_steps import TABLE

HOUR_S = 3600


def an_hour(model: StepModel, candidates: list[int]) -> list[tuple[Trial, float]]:
    """Trials of an idle engine that beats every two seconds, with the time of each."""
    trials = Trials(ThreadChoice(decode=2, prompt=2, candidates=candidates), model, rows_limit=256)
    made: list[tuple[Trial, float]] = []
    now_s = beat_s = 0.0
    while now_s < HOUR_S:
        at_leisure = now_s >= beat_s
        beat_s = now_s + 2.0 if at_leisure else beat_s
        if (trial := trials.next(now_s, 0, at_leisure=at_leisure)) is not None:
            took_s = model.raw_s(trial.kind, trial.rows, 0) * (1.5 if trial.threads == 1 else 1.0)
            now_s += took_s
            made.append((trial, took_s))
            trials.tried(trial, took_s / model.raw_s(trial.kind, trial.rows, 0), took_s, now_s)
        now_s = max(now_s + 0.001, min(trials.due_s, beat_s))
    return made


def test_passes_that_whoever_arrives_would_notice_take_hardly_any_of_an_idle_engines_time() -> None:
    model = StepModel(TABLE)
    model.rescale("prompt", 20.0)
    made = an_hour(model, [1, 2])
    long = [took_s for trial, took_s in made if trial.kind == "prompt"]
    assert len(long) >= 8 and sum(long) < HOUR_S / 400
    assert sum(trial.kind == "decode" for trial, _ in made) > 5000, "short ones go on meanwhile"


def test_short_passes_are_tried_all_the_time_and_nothing_where_there_is_no_choice() -> None:
    kinds = [trial.kind for trial, _ in an_hour(StepModel(TABLE), [1, 2])]
    assert kinds.count("decode") > 10_000
    assert an_hour(StepModel(TABLE), [2]) == []
