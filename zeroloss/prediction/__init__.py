"""The mean of training at a given step size, without training."""

from zeroloss.prediction._how_long import HowLong as HowLong, how_long as how_long
from zeroloss.prediction._predict import predict as predict
from zeroloss.prediction._tolerance import Tolerance as Tolerance
