"""A transformer of our own. The model's file refers to it by its name: training and the server import this module."""

import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import validate_data


class Ratios(TransformerMixin, BaseEstimator):
    """Adds a column for each pair: the first divided by the second."""

    def __init__(self, pairs):
        self.pairs = pairs

    def fit(self, frame, _target=None):
        validate_data(self, frame, skip_check_array=True)  # keeps the names of the columns, which the server tells
        return self

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{f"{above}/{below}": frame[above] / frame[below] for above, below in self.pairs})
