"""Which answer a comparison tells to use, from rows made by hand."""

import pytest

from zeroloss.studies._answers import (
    answer_in_short,
    percent,
    what_took_longer,
    which_answer,
    why_below_the_limit,
)

# Dropout 0.1 and minibatches of 8 on 60 rows of diabetes data, as a user found them.
ROW = {
    "time_scale": "1/(alpha sigma^2)",
    "distance": 0.49,
    "distance_error": 0.006,
    "distance_of": "way",
    "replicas": 8,
    "prediction_distance": 0.02,
    "prediction_estimate": 0.03,
    "diverged_at": None,
    "no_prediction": "",
}


def test_the_prediction_where_the_limit_is_far_off():
    assert which_answer(ROW) == (
        "At this step size and noise use the prediction (2 % of the way off), not the limit (49 %); the "
        "scatter of the 8 runs accounts for 0.6 %."
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"distance": 0.04}, "limit and prediction both hold (4 % and 2 % of the way off)"),
        (
            {"distance": 0.02, "prediction_distance": 0.2},
            "use the limit (2 % of the way off), not the prediction (20 %)",
        ),
        (
            {"prediction_distance": 0.2},
            "use the training: neither the limit (49 % of the way off) nor the prediction (20 %) holds",
        ),
        # Few runs scatter so much that neither can be told from them.
        ({"distance_error": 0.25}, "limit and prediction both hold (49 % and 2 % of the way off)"),
        ({"prediction_distance": None}, "the limit does not hold (49 % of the way off)"),
        ({"prediction_distance": None, "distance": 0.01}, "the limit holds (1 % of the way off)"),
        ({"distance_of": "|w|"}, "use the training: neither the limit (49 % of |w| off) nor"),
        ({"diverged_at": 70.0}, "neither limit nor prediction describes the training, which diverged"),
        (
            {"time_scale": None, "distance": 1e-16},
            "the limit stays where it is, and training does not move",
        ),
        (
            {"time_scale": "", "distance": 0.3},
            "the limit stays where it is, and training moves by 30 % of |w|",
        ),
        ({"distance": None}, ""),
    ],
)
def test_each_case_in_short(changed, said):
    assert answer_in_short(ROW | changed).startswith(said)
    assert which_answer(ROW | changed).startswith(f"At this step size and noise {said}" if said else "")


def test_a_prediction_that_is_further_off_than_it_expected():
    said = which_answer(ROW | {"prediction_estimate": 0.001})
    assert said.endswith("The prediction is further off than the 0.1 % that it expected.")
    assert "expected" not in which_answer(ROW | {"prediction_estimate": 0.009})  # 0.02 < 0.009 + 2 * 0.006


def test_why_there_is_no_prediction():
    said = which_answer(ROW | {"prediction_distance": None, "no_prediction": "the noise is too large."})
    assert said.endswith("There is no prediction: the noise is too large.")


def test_training_that_was_faster():
    seconds = {"seconds_training": 6.0, "seconds_limit": 2.0, "seconds_prediction": 60.0}
    assert what_took_longer(seconds) == (
        "Training was faster here: it took 6.0 s, less than the prediction (60.0 s), compiling included."
    )
    assert what_took_longer(seconds | {"seconds_prediction": None}) == ""


def test_a_trace_below_the_limit():
    traces = {"hessian_trace_limit": 2.0, "hessian_trace_training": 1.9, "hessian_trace_error": 0.01}
    assert why_below_the_limit(traces).startswith("The trace of the Hessian trained, 1.9, is below the 2 of")
    assert why_below_the_limit(traces | {"hessian_trace_error": 0.06}) == ""
    assert why_below_the_limit(traces | {"hessian_trace_training": 1.999}) == ""
    assert why_below_the_limit(traces | {"diverged_at": 3.0}) == ""
    predicted = traces | {"hessian_trace_error": 0.06, "hessian_trace_prediction": 1.95}
    assert why_below_the_limit(predicted).startswith(
        "The trace of the Hessian predicted, 1.95, is below the 2 of"
    )


@pytest.mark.parametrize(
    ("share", "said"), [(0.4949, "49 %"), (0.0012345, "0.12 %"), (0.9999, "100 %"), (12.34, "1,200 %")]
)
def test_percentages(share, said):
    assert percent(share) == said
